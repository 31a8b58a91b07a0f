import sys

from joblib_stateful import stateful_map


def flags(_=None):
    named = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_" and name[:2] != "n_"}
    named = {name: value for name, value in named.items() if not callable(value)}
    return named, sys.warnoptions, sys._xoptions, __debug__


def nested(_):
    return next(stateful_map(flags, [0], n_jobs=1))


here = flags()
for look in (flags, nested):
    found = next(stateful_map(look, [0], n_jobs=1))
    if found != here:  # no assertion, which -O leaves out
        sys.exit(f"{look.__name__}: {found} instead of {here}")
