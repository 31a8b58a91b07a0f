"""A full-text index in shards: each worker holds one of them, every text goes to its own, and a search asks all.

The texts are the paragraphs of Python's language reference. `route` says which worker must add a text, so that all
paragraphs of a topic are in one shard; `run_on_all` runs a search in each worker, and the best of all are shown.

    python examples/sharded_index.py "context manager" [--repeat 20] [--compare]
"""

import argparse
import heapq
import itertools
import multiprocessing
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from joblib_stateful import StatefulExecutor, get_worker, stateful_map

N_SHARDS = 2


class Shard:
    """A part of the index, in a file of its own."""

    def __init__(self, path: Path) -> None:
        self.index = sqlite3.connect(path, isolation_level=None)
        self.index.execute("CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5(topic, text)")
        self.index.execute("BEGIN")

    def __call__(self, item: tuple[str, str]) -> None:
        self.index.execute("INSERT INTO texts VALUES (?, ?)", item)

    def search(self, words: str, limit: int = 5) -> list[tuple[float, str, str]]:
        """Return rank (the less the better), topic and part of the paragraphs that suit best."""
        sql = "SELECT rank, topic, snippet(texts, 1, '', '', '...', 12) FROM texts WHERE texts MATCH ? ORDER BY rank LIMIT ?"
        return self.index.execute(sql, [words, limit]).fetchall()

    def close(self) -> None:
        self.index.execute("COMMIT")
        self.index.close()


def shard_of(item: tuple[str, str]) -> int:
    return zlib.crc32(item[0].encode()) % N_SHARDS  # not hash(), which is another one in each process


def search(words: str) -> list[tuple[float, str, str]]:
    return get_worker().search(words)  # type: ignore[no-any-return]


def paragraphs(repeat: int) -> Iterator[tuple[str, str]]:
    for _, (topic, page) in itertools.product(range(repeat), topics.items()):
        yield from ((topic, text) for text in page.split("\n\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="?", default="context manager")
    parser.add_argument("--repeat", type=int, default=1, help="add all so many times")
    parser.add_argument(
        "--compare", action="store_true", help="do the same by multiprocessing.Pool, and tell both times"
    )
    options = parser.parse_args()
    total = sum(1 for _ in paragraphs(options.repeat))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        shards = [{"path": Path(folder, f"{number}.db")} for number in range(N_SHARDS)]
        with StatefulExecutor(Shard, worker_kwargs=shards) as index:
            for _ in stateful_map(index, paragraphs(options.repeat), route=shard_of, progress=True, total=total):
                pass
            found = heapq.nsmallest(5, itertools.chain(*index.run_on_all(search, options.words)))
            seconds = time.perf_counter() - started
        print(f"{total} paragraphs, of which these are the best for {options.words!r}:")
        for rank, topic, text in found:
            print(f"  {rank:.1f} {topic}: {' '.join(text.split())}")
        if options.compare:
            started = time.perf_counter()
            same = by_pools(Path(folder), options.repeat, options.words)
            pool_seconds = time.perf_counter() - started
            assert same == found  # noqa: S101 - that's what is to be shown
            print(
                f"joblib_stateful {seconds:.1f} s, Pools {pool_seconds:.1f} s: {pool_seconds / seconds:.2f} times as long"
            )


def by_pools(folder: Path, repeat: int, words: str) -> list[tuple[float, str, str]]:
    """Do the same by hand. A Pool can't send an item to one of its processes, so each shard has a Pool of one."""
    context = multiprocessing.get_context("spawn")
    pools = [context.Pool(1, build, [Path(folder, f"pool{number}.db")]) for number in range(N_SHARDS)]
    try:
        waiting = []
        items = paragraphs(repeat)
        while chunk := list(itertools.islice(items, 1000)):  # without a bound: all of the input may wait in memory
            for number, pool in enumerate(pools):
                waiting.append(pool.apply_async(add, [[item for item in chunk if shard_of(item) == number]]))
        for result in waiting:
            result.get()
        searches = [pool.apply_async(search_here, [words]) for pool in pools]
        return heapq.nsmallest(5, itertools.chain(*(result.get() for result in searches)))
    finally:
        for pool in pools:
            pool.terminate()
            pool.join()


def build(path: Path) -> None:
    globals()["shard"] = Shard(path)


def add(items: list[tuple[str, str]]) -> None:
    for item in items:
        globals()["shard"](item)


def search_here(words: str) -> list[tuple[float, str, str]]:
    return globals()["shard"].search(words)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
