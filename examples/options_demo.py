"""Try the options of stateful_map at the command line: what happens when items fail, crash or take too long?

python examples/options_demo.py --fail-on 7 --on-error deferred
python examples/options_demo.py --crash-on 3 12 --retries 1 --unordered
python examples/options_demo.py --slow-on 5 --item-timeout 0.5 --on-error wait_others
python examples/options_demo.py --threads --unsized --pass-as kwargs --batch-size 4 --buffer 16
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from joblib_stateful import TaskResult, stateful_map


class Power:
    """Raises numbers to a power, and misbehaves where it is told to."""

    def __init__(self, exponent: int, fail_on: set[int], crash_on: set[int], slow_on: set[int], crashed: Path) -> None:
        self.exponent = exponent
        self.fail_on, self.crash_on, self.slow_on, self.crashed = fail_on, crash_on, slow_on, crashed

    def __call__(self, base: int, plus: int = 0) -> tuple[int, int, int]:
        time.sleep(3 if base in self.slow_on else 0.02)
        if base in self.fail_on:
            raise ValueError(f"{base} is one of the numbers to fail on")
        if base in self.crash_on and not (mark := self.crashed / str(base)).exists():
            mark.touch()  # it crashes once: trying again helps, as after a shortage of memory
            os.kill(os.getpid(), signal.SIGKILL)
        return base, base**self.exponent + plus, os.getpid()


def items_for(n_items: int, pass_as: Literal["item", "args", "kwargs"]) -> list[Any]:
    items: dict[str, list[Any]] = {
        "item": list(range(n_items)),
        "args": [(base, 0) for base in range(n_items)],
        "kwargs": [{"base": base, "plus": 0} for base in range(n_items)],
    }
    return items[pass_as]


def without_length(items: Iterable[Any]) -> Iterator[Any]:
    yield from items


def count_or_auto(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else int(text)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-items", type=int, default=40, help="numbers to work on: 0, 1, 2, ... (default: 40)")
    parser.add_argument("--n-jobs", type=int, default=2, help="workers (default: 2)")
    parser.add_argument("--unordered", action="store_true", help="results as they finish")
    parser.add_argument("--threads", action="store_true", help="workers are threads instead of processes")
    parser.add_argument("--unsized", action="store_true", help="the input is a generator, which has no length")
    parser.add_argument("--pass-as", choices=["item", "args", "kwargs"], default="item")
    parser.add_argument("--on-error", choices=["immediate", "wait_others", "deferred"], default="immediate")
    parser.add_argument("--batch-size", type=count_or_auto, default="auto", help='items per message, or "auto"')
    parser.add_argument("--buffer", type=count_or_auto, default="auto", help='items on their way, or "auto"')
    parser.add_argument("--item-timeout", type=float, help="seconds that one item may run (processes only)")
    parser.add_argument("--retries", type=int, default=0, help="further attempts after a crash or a timeout")
    parser.add_argument("--fail-on", type=int, nargs="*", default=[], help="numbers that raise a ValueError")
    parser.add_argument("--crash-on", type=int, nargs="*", default=[], help="numbers that kill their worker, once")
    parser.add_argument("--slow-on", type=int, nargs="*", default=[], help="numbers that take 3 seconds")
    options = parser.parse_args()
    if options.threads and (options.crash_on or options.item_timeout):
        parser.error("--crash-on and --item-timeout kill workers, and threads can't be killed: leave --threads out")
    return options


def main() -> None:
    options = read_options()
    items = items_for(options.n_items, options.pass_as)
    pids: set[int] = set()
    n_good = n_failed = 0
    with tempfile.TemporaryDirectory() as crashed:
        results = stateful_map(
            Power,
            without_length(items) if options.unsized else items,
            n_jobs=options.n_jobs,
            shared_kwargs={
                "exponent": 3,
                "fail_on": set(options.fail_on),
                "crash_on": set(options.crash_on),
                "slow_on": set(options.slow_on),
                "crashed": Path(crashed),
            },
            pass_as=options.pass_as,
            ordered=not options.unordered,
            on_error=options.on_error,
            batch_size=options.batch_size,
            buffer=options.buffer,
            item_timeout=options.item_timeout,
            retries=options.retries,
            progress={"desc": "cubes"},
            engine="threads" if options.threads else "loky",
        )
        try:
            for result in results:
                if isinstance(result, TaskResult) and not result.ok:  # under --on-error deferred
                    n_failed += 1
                    tqdm.write(f"item {result.index} failed: {type(result.exception).__name__}: {result.exception}")
                    continue
                base, cube, pid = result.unwrap() if isinstance(result, TaskResult) else result
                n_good += 1
                pids.add(pid)
                tqdm.write(f"{base} ** 3 = {cube}")
        except Exception as error:  # noqa: BLE001 - whatever a worker raised, or what became of the worker
            n_failed += 1
            tqdm.write(f"Stopped by {type(error).__name__}: {error}")
            for note in getattr(error, "__notes__", ()):
                tqdm.write(f"  {note}")
    where = "this process" if pids == {os.getpid()} else f"{len(pids)} worker processes"
    print(f"{n_good} of {options.n_items} results, computed in {where}; {n_failed} errors.")


if __name__ == "__main__":
    main()
