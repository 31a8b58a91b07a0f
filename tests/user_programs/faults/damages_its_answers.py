import random
import sys

from _worker_that_is_damaged import run
from joblib_stateful import errors, shutdown


def damage(kind):
    from joblib_stateful.engines.loky import _child, _line

    line = _child._kept[1]
    send = type(line).send

    def send_damaged(data, fds=()):
        del line.send
        how, change = kinds[kind]
        if how == "bytes":
            line._end.sendall(change(header(len(data)) + data))
        else:
            reply, kept = _line.decode(data)
            send(line, change(_line.encode, reply, kept), fds)

    line.send = send_damaged


def header(size, n_files=0):
    from joblib_stateful.engines.loky import _line

    return _line._HEADER.pack(_line._SIGN, size, n_files, _line._check(size, n_files))


def replaced(**fields):
    return lambda encode, reply, kept: encode(reply._replace(**fields), kept)


def sent(other):
    def change(encode, reply, kept):
        import pickle

        return pickle.dumps(other)

    return change


def parcel(**fields):
    return lambda encode, reply, kept: encode(reply._replace(values=reply.values._replace(**fields)), kept)


def failure(key, value=None):
    def change(encode, reply, kept):
        from joblib_stateful._worker._messages import Failure

        failures = {key: Failure(None, "KeyError", "", "") if value is None else value}
        return encode(reply._replace(failures=failures), kept)

    return change


def of_kind(name):
    def change(encode, reply, kept):
        from joblib_stateful._worker import _messages

        made = {"Built": (reply.seq, 1, 0.0), "Finished": (reply.seq, None), "Build": (reply.seq, 0, 1, None)}
        return encode(getattr(_messages, name)(*made[name]), kept)

    return change


def flipped(seed):
    def change(encode, reply, kept):
        data = bytearray(encode(reply, kept))
        generator = random.Random(seed)
        for _ in range(generator.randint(1, 8)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        return bytes(data)

    return change


N = len(header(0))
kinds = {
    "no message": ("bytes", lambda whole: b"what is this?" * 10),
    "zeros": ("bytes", lambda whole: bytes(len(whole))),
    "another sign": ("bytes", lambda whole: b"JLST" + whole[4:]),
    "size damaged": ("bytes", lambda whole: whole[:4] + b"\xff" + whole[5:]),
    "far too large": ("bytes", lambda whole: whole[:9] + b"\x7f" + whole[10:]),
    "too large, and meant": ("bytes", lambda whole: header(len(whole) + 1000) + whole[N:]),
    "too small, and meant": ("bytes", lambda whole: header(5) + whole[N:]),
    "files that don't come": ("bytes", lambda whole: header(len(whole) - N, 3) + whole[N:]),
    "too many files": ("bytes", lambda whole: header(len(whole) - N, 3000) + whole[N:]),
    "half": ("bytes", lambda whole: whole[: N + (len(whole) - N) // 2]),
    "half a header": ("bytes", lambda whole: whole[: N // 2]),
    "nothing": ("bytes", lambda whole: b""),
    "twice": ("bytes", lambda whole: whole * 2),
    "more behind it": ("bytes", lambda whole: whole + b"more"),
    "None": ("reply", sent(None)),
    "a number": ("reply", sent(7)),
    "two fields": ("reply", sent((0, None))),
    "another kind": ("reply", sent((9, None, ()))),
    "no fields": ("reply", sent((2, (), ()))),
    "no pickle": ("reply", lambda encode, reply, kept: b"\x80\x05nonsense"),
    "empty": ("reply", lambda encode, reply, kept: b""),
    "Built": ("reply", of_kind("Built")),
    "Finished": ("reply", of_kind("Finished")),
    "Build": ("reply", of_kind("Build")),
    "later": ("reply", lambda encode, reply, kept: encode(reply._replace(seq=reply.seq + 1), kept)),
    "earlier": ("reply", lambda encode, reply, kept: encode(reply._replace(seq=reply.seq - 1), kept)),
    "seq is a text": ("reply", replaced(seq="1")),
    "none run": ("reply", replaced(n_run=0)),
    "fewer than none run": ("reply", replaced(n_run=-1)),
    "many run": ("reply", replaced(n_run=10**12)),
    "n_run is None": ("reply", replaced(n_run=None)),
    "seconds are none": ("reply", replaced(seconds=None)),
    "seconds below zero": ("reply", replaced(seconds=-1e300)),
    "seconds not a number": ("reply", replaced(seconds=float("nan"))),
    "values are none": ("reply", replaced(values=(1, 2, 3, 4))),
    "failures are none": ("reply", replaced(failures=None)),
    "a failure of another item": ("reply", failure(99)),
    "a failure below zero": ("reply", failure(-1)),
    "a failure of no item": ("reply", failure("x")),
    "a failure that is none": ("reply", failure(0, "x")),
    "no frames": ("reply", parcel(frames=())),
    "frames are none": ("reply", parcel(frames=None)),
    "more values": ("reply", parcel(n_values=5)),
    "joint, of something else": ("reply", parcel(joint=True, frames=(b"I7\n.",), n_values=4)),
    "weighs less than nothing": ("reply", parcel(nbytes=-5)),
    "looked into is None": ("reply", lambda encode, reply, kept: encode(reply, None)),
    "looked into is a text": ("reply", lambda encode, reply, kept: encode(reply, "abc")),
    **{f"flipped {seed}": ("reply", flipped(seed)) for seed in range(12)},
}
# A file that is not there is missed by nobody who needs none; and what comes behind an answer can't take it back.
harmless = {"files that don't come", "twice", "more behind it"}

part, n_parts = int(sys.argv[1]), int(sys.argv[2])
for number, kind in list(enumerate(kinds))[part::n_parts]:
    batch_size = 4 if kind.startswith("joint") or number // n_parts % 2 else 1
    result = run(kind, batch_size, sure="flipped" not in kind)
    if kind not in harmless and "flipped" not in kind:
        assert type(result.exception) is errors.WorkerCrashedError, (kind, batch_size, result)
        assert "can't be" in str(result.exception), (kind, result)
        assert "os._exit" not in str(result.exception), (kind, result)
    else:
        shutdown()  # the next map's worker has not sent anything of this
shutdown()
print("done")
