import os
import sys
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell


def main():
    here, name = Path.cwd(), "helpers_of_a_notebook"
    when = [1_000_000_000]
    sys.path.insert(0, str(here))

    def write(text):
        path = here / f"{name}.py"
        path.write_text(text)
        when[0] += 10
        os.utime(path, (when[0], when[0]))

    shell = InteractiveShell.instance()

    def cell(text):
        outcome = shell.run_cell(text)
        outcome.raise_error()

    text = "STEP = 1\ndef call(item):\n    return item + STEP\n"
    write(text)
    cell("%load_ext autoreload\n%autoreload 2")
    cell(f"import {name}\nfrom joblib_stateful import stateful_map")
    run = f"found = list(stateful_map({name}.call, [0, 1], n_jobs=1))"
    cell(run)
    assert shell.user_ns["found"] == [1, 2], shell.user_ns["found"]
    # The first edit is a reload; those behind it are patched in, without one.
    for before, after, expected in (
        ("item + STEP", "item - STEP", [-1, 0]),
        ("item - STEP", "item - 2 * STEP", [-2, -1]),
        ("STEP = 1", "STEP = 3", [-6, -5]),
    ):
        text = text.replace(before, after)
        write(text)
        cell("pass")
        cell(run)
        assert shell.user_ns["found"] == expected, (shell.user_ns["found"], expected)
    print("done")


if __name__ == "__main__":
    main()
