"""`max_worker_memory`: a worker whose process holds too much is closed behind an item, and its object built anew."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from joblib_stateful import StatefulExecutor, call_worker, stateful_map
from needs import needs

if TYPE_CHECKING:
    from conftest import BuildLog

MB = 1_000_000
pytestmark = needs("proc")


class Hoarder:
    """Keeps so many megabytes of each item."""

    def __init__(self, built: BuildLog, closed: Path | None = None) -> None:
        built.note()
        self.kept: list[bytes] = []
        self.closed = closed

    def __call__(self, n_mb: int) -> int:
        self.kept.append(os.urandom(n_mb * MB))
        return os.getpid()

    def close(self) -> None:
        if self.closed is not None:
            with self.closed.open("a") as file:
                file.write(f"{os.getpid()}\n")


def held_at_first(built: BuildLog) -> int:
    """Return how much a worker holds that keeps nothing."""
    with StatefulExecutor(Hoarder, n_jobs=1, shared_kwargs={"built": built}) as executor:
        text = executor.submit(Path("/proc/self/statm").read_text).result()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_a_worker_that_holds_too_much_is_built_anew_and_nothing_is_lost(
    built: BuildLog, tmp_path: Path, caplog: pytest.LogCaptureFixture, batch_size: Any
) -> None:
    limit = held_at_first(built) + 45 * MB
    n_built, closed = len(built), tmp_path / "closed"
    with caplog.at_level(logging.INFO, "joblib_stateful"):
        found = list(
            stateful_map(
                Hoarder,
                [20] * 12,
                n_jobs=1,
                shared_kwargs={"built": built, "closed": closed},
                max_worker_memory=limit,
                batch_size=batch_size,
            )
        )
    assert [found.count(pid) for pid in dict.fromkeys(found)] == [3, 3, 3, 3], "the third item is one too many"
    assert len(built) - n_built >= 4
    assert len(set(closed.read_text().split()) & set(map(str, found))) >= 3, "it is closed as in good order"
    told = [record.getMessage() for record in caplog.records if "more than max_worker_memory" in record.getMessage()]
    assert len(told) == 4
    assert "slot 0" in told[0]


def test_an_object_that_is_larger_than_the_limit_is_kept_and_told_of(
    built: BuildLog, caplog: pytest.LogCaptureFixture
) -> None:
    found = list(stateful_map(Hoarder, [0] * 5, n_jobs=1, shared_kwargs={"built": built}, max_worker_memory="1MB"))
    assert len(set(found)) == 1
    told = [record.getMessage() for record in caplog.records if "max_worker_memory=1,000,000" in record.getMessage()]
    assert len(told) == 1


def test_an_executors_calls_have_its_limit(built: BuildLog) -> None:
    limit = held_at_first(built) + 30 * MB
    with StatefulExecutor(Hoarder, n_jobs=1, shared_kwargs={"built": built}, max_worker_memory=limit) as executor:
        found = [executor.submit(call_worker, 20).result() for _ in range(4)]
        assert [found.count(pid) for pid in dict.fromkeys(found)] == [2, 2]
        assert list(stateful_map(executor, [40, 0])) != []
        assert executor.workers()[0].n_builds == 4


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("8 quintals", ValueError, r"'8 quintals' is no amount of memory.*8GB"),
        ("", ValueError, "no amount of memory"),
        (0, ValueError, "more than 0 bytes"),
        (-1, ValueError, "more than 0 bytes"),
        (True, TypeError, "whole number of bytes"),
        (1.5, TypeError, "whole number of bytes"),
        ([1], TypeError, "whole number of bytes"),
    ],
)
def test_what_is_no_amount_of_memory_is_refused_at_the_call(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        stateful_map(abs, [1], max_worker_memory=value)
    with pytest.raises(error, match=text):
        StatefulExecutor(max_worker_memory=value)


@pytest.mark.parametrize("engine", ["threads", "inline"])
def test_workers_without_processes_of_their_own_can_not_have_a_limit(engine: str) -> None:
    with pytest.raises(ValueError, match=f"engine='{engine}' has none of its own to end"):
        stateful_map(abs, [1], max_worker_memory="8GB", engine=engine)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("8GB", 8 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mib", 500 * 2**20), ("2k", 2000), ("77", 77), (" 1TB ", 10**12)],
)
def test_amounts_of_memory_in_words(text: str, n_bytes: int) -> None:
    with StatefulExecutor(n_jobs=1, max_worker_memory=text) as executor:
        assert executor.limits.max_worker_memory == n_bytes
