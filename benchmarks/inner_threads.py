"""Libraries with threads of their own in two workers: what the variables of ``_thread_limits`` rest on.

Each line is a library: items per second with the first folder's joblib_stateful over those with the second one's, in turn,
as the median of the rounds; the same by items per second of CPU time, for beside other work more threads get more of the machine;
and how many threads of a worker compute. A library that is not installed is left out.

    python benchmarks/inner_threads.py --folders . ../before --rounds 5 polars opencv
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Call = Callable[[], object]


def polars() -> Call:
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)
    frame = pl.DataFrame({"key": random.integers(0, 1000, 500_000), "value": random.random(500_000)})
    return lambda: frame.group_by("key").agg(pl.col("value").sum(), deviation=pl.col("value").std())


def tokenizers() -> Call:
    import numpy as np
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    random = np.random.default_rng(0)
    words = ["".join(map(chr, 97 + random.integers(0, 8, 6))) for _ in range(500)]
    texts = [" ".join(random.choice(words, 60)) for _ in range(500)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts[:100], trainers.BpeTrainer(vocab_size=500, show_progress=False))
    return lambda: tokenizer.encode_batch(texts)


def opencv() -> Call:
    import cv2
    import numpy as np

    image = np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)
    return lambda: cv2.GaussianBlur(image, (31, 31), 0)


def numpy() -> Call:
    import numpy as np

    matrix = np.random.default_rng(0).random((500, 500))
    return lambda: matrix @ matrix


def blosc2() -> Call:
    import blosc2
    import numpy as np

    array = np.random.default_rng(0).integers(0, 1000, 2_000_000)
    return lambda: blosc2.compress2(array, codec=blosc2.Codec.ZSTD, clevel=3)


def onnxruntime() -> Call:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(_product_with_itself(500), providers=["CPUExecutionProvider"])
    matrix = np.random.default_rng(0).random((500, 500), dtype=np.float32)
    return lambda: session.run(None, {"x": matrix})


def jax() -> Call:
    import jax
    import numpy as np

    matrix = jax.numpy.asarray(np.random.default_rng(0).random((700, 700), dtype=np.float32))
    function = jax.jit(lambda x: jax.numpy.tanh(x @ x).sum())
    return lambda: function(matrix).block_until_ready()


def datafusion() -> Call:
    import numpy as np
    import pyarrow as pa
    from datafusion import SessionContext

    random = np.random.default_rng(0)
    context = SessionContext()
    table = pa.table({"key": random.integers(0, 1000, 500_000), "value": random.random(500_000)})
    context.from_arrow(table, "t")
    return lambda: context.sql("select key, sum(value), stddev(value) from t group by key").collect()


def lightgbm() -> Call:
    import lightgbm
    import numpy as np

    data = np.random.default_rng(0).random((5000, 20))
    labels = data.sum(1) > 10
    return lambda: lightgbm.LGBMClassifier(n_estimators=10, n_jobs=-1, verbose=-1).fit(data, labels)


LIBRARIES: dict[str, tuple[str, Callable[[], Call]]] = {
    "polars": ("polars", polars),
    "tokenizers": ("tokenizers", tokenizers),
    "opencv": ("cv2", opencv),
    "numpy": ("numpy", numpy),
    "blosc2": ("blosc2", blosc2),
    "onnxruntime": ("onnxruntime", onnxruntime),
    "jax": ("jax", jax),
    "datafusion": ("datafusion", datafusion),
    "lightgbm": ("lightgbm", lightgbm),
}


def _product_with_itself(size: int) -> bytes:
    """Return an ONNX model, put together by hand: ``onnx`` itself is not needed for it."""

    def number(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)

    def text(field: int, content: bytes) -> bytes:
        return number(field << 3 | 2) + number(len(content)) + content

    def integer(field: int, value: int) -> bytes:
        return number(field << 3) + number(value)

    def named(name: bytes) -> bytes:
        shape = 2 * text(1, integer(1, size))
        return text(1, name) + text(2, text(1, integer(1, 1) + text(2, shape)))

    node = text(1, b"x") + text(1, b"x") + text(2, b"y") + text(4, b"MatMul")
    graph = text(1, node) + text(2, b"product") + text(11, named(b"x")) + text(12, named(b"y"))
    return integer(1, 8) + text(7, graph) + text(8, integer(2, 17))


class Model:
    """Calls a library, and tells how much CPU time each of its threads has had."""

    def __init__(self, name: str) -> None:
        self._call = LIBRARIES[name][1]()
        for _ in range(3):
            self._call()
        self._before, self._began = dict(self._times()), time.process_time()

    def _times(self) -> Iterator[tuple[str, float]]:
        for task in Path("/proc/self/task").iterdir():
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            yield task.name, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __call__(self, _: int) -> None:
        self._call()

    def spent(self) -> tuple[float, int]:
        """Return the CPU time since the object was built, and how many threads have had more than a twentieth of it."""
        each = [seconds - self._before.get(name, 0) for name, seconds in self._times()]
        return time.process_time() - self._began, sum(seconds > 0.05 * sum(each) for seconds in each)


def spent() -> Any:
    from joblib_stateful import get_worker

    return get_worker().spent()


def run_here(name: str, seconds: float) -> None:
    """Print the figures of one run: items per second, per second of CPU time, and computing threads of a worker."""
    from joblib_stateful import StatefulExecutor, stateful_map

    with StatefulExecutor(Model, 2, shared_kwargs={"name": name}) as executor:
        executor.warm_up()
        started, n_items = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            n_items += len(list(stateful_map(executor, range(20), batch_size=1)))
        took = time.perf_counter() - started
        each = executor.run_on_all(spent)
    in_all, computing = sum(seconds for seconds, _ in each), statistics.mean(threads for _, threads in each)
    print(json.dumps([n_items / took, n_items / in_all, computing]))


def run(folder: Path, name: str, seconds: float) -> list[float]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join([str(folder.resolve()), env.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--one", name, "--seconds", str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**env, "PYTHONPATH": path})
    figures: list[float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", default=[], help=", ".join(LIBRARIES))
    parser.add_argument("--folders", nargs=2, type=Path, default=[Path(), Path()], help="with a joblib_stateful each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_here(options.one, options.seconds)
        return
    for name in options.libraries or LIBRARIES:
        if importlib.util.find_spec(LIBRARIES[name][0]) is None:
            continue
        rounds = [[run(folder, name, options.seconds) for folder in options.folders] for _ in range(options.rounds)]
        rate, by_cpu = (statistics.median(now[at] / before[at] for now, before in rounds) for at in (0, 1))
        threads = [statistics.median(both[at][2] for both in rounds) for at in (0, 1)]
        print(
            f"{name:12} items/s {rate:.2f}   items/CPU s {by_cpu:.2f}   threads {threads[1]:g}, now {threads[0]:g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
