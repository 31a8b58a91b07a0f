"""Search Python's language reference: every worker opens its own full-text index, once.

The object that each worker keeps is a connection to an in-memory SQLite database, which can't be pickled and
would be lost if it were built per call. The input is a lazy stream of 20,000 queries drawn from the text itself.
"""

import collections
import os
import random
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from joblib_stateful import stateful_map

N_QUERIES = 20_000


class Searcher:
    """A full-text index over the paragraphs of the language reference."""

    def __init__(self, built: Path) -> None:
        with built.open("a") as log:  # so that the main program can count how often this was run
            log.write(f"{os.getpid()}\n")
        self.index = sqlite3.connect(":memory:")
        self.index.execute("CREATE VIRTUAL TABLE paragraphs USING fts5(topic UNINDEXED, text)")
        rows = ((topic, text) for topic, page in topics.items() for text in page.split("\n\n"))
        self.index.executemany("INSERT INTO paragraphs VALUES (?, ?)", rows)

    def __call__(self, query: str) -> tuple[str, str]:
        """Return the query and the topic that suits it best."""
        sql = "SELECT topic FROM paragraphs WHERE paragraphs MATCH ? ORDER BY rank LIMIT 1"
        row = self.index.execute(sql, [query]).fetchone()
        return query, row[0] if row else "nothing"

    def close(self) -> None:
        self.index.close()


def queries(n: int, seed: int) -> Iterator[str]:
    """Yield queries of three words each, which stand side by side somewhere in the text."""
    chance = random.Random(seed)
    paragraphs = [text for page in topics.values() for text in page.split("\n\n")]
    words = [found for text in paragraphs if len(found := re.findall(r"[A-Za-z]{3,}", text)) >= 3]
    for _ in range(n):
        found = chance.choice(words)
        start = chance.randrange(len(found) - 2)
        yield " ".join(f'"{word}"' for word in found[start : start + 3])


def main(engine: str = "loky") -> None:
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "built")
        for seed in (1, 2):
            started = time.perf_counter()
            wanted: collections.Counter[str] = collections.Counter()
            results = stateful_map(
                Searcher,
                queries(N_QUERIES, seed),
                n_jobs=2,
                shared_kwargs={"built": built},
                progress={"desc": f"map {seed}", "unit": " queries"},
                total=N_QUERIES,
                engine=engine,
            )
            samples = []
            for query, topic in results:
                wanted[topic] += 1
                if len(samples) < 3:
                    samples.append(f"{query} -> {topic}")
            seconds = time.perf_counter() - started
            print("For example:", *samples, sep="\n  ")
            print(f"Most wanted: {', '.join(f'{topic} ({n})' for topic, n in wanted.most_common(10))}")
            builds = built.read_text().split()
            print(f"Map {seed}: {N_QUERIES / seconds:,.0f} queries/s; indexes built so far: {len(builds)}")
        print(f"Built in processes {', '.join(builds)}, none of which is this one ({os.getpid()}).")


if __name__ == "__main__":
    main()
