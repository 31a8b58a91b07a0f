"""While nothing has come because objects are being built, the bar says so, and its rate is counted from there on."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm

from contract import on
from joblib_stateful import StatefulExecutor, stateful_map
from needs import needs
from scenes import crash, new_scene, orders, parallel_engines

LIMIT = 60.0


class Watched(io.StringIO):
    """What a bar is written to; calls a function when something was seen so many times."""

    def __init__(self, text: str, times: int, then: Any) -> None:
        super().__init__()
        self.text, self.times, self.then = text, times, then

    def write(self, text: str) -> int:
        written = super().write(text)
        if len(re.findall(self.text, self.getvalue())) >= self.times:
            self.then()
        return written


def builds_when_open(scene: Any) -> Any:
    class Model:
        def __init__(self) -> None:
            scene.gate().wait()

        def __call__(self, item: int) -> int:
            return item

    return Model


@parallel_engines
@orders
@pytest.mark.parametrize("own", ["", "mine"])
def test_a_bar_says_what_is_being_built(*, engine: str, ordered: bool, own: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    # No object stands before the bar has said three times, half a second apart, that they are being built.
    file = Watched("building 2 of 2", 3, scene.gate().open)
    results = stateful_map(
        builds_when_open(scene),
        range(100),
        n_jobs=2,
        batch_size=1,
        ordered=ordered,
        engine=engine,
        progress={"file": file, "postfix": own or None, "mininterval": 0},
    )
    assert sorted(results) == list(range(100))
    lines = re.split(r"[\r\n]+", file.getvalue())
    said = [line for line in lines if "building" in line]
    assert all("0/100" in line and (f", {own}, building 2 of 2]" if own else ", building") in line for line in said)
    clocks = [match[1] for line in said if (match := re.search(r"\[(\d\d:\d\d)<", line))]
    assert clocks[0] < clocks[-1], "its clock stood still"
    last = [line for line in lines if line.strip()][-1]
    assert "100/100" in last
    assert ("building" not in last) and ((f", {own}]" in last) == bool(own))


@pytest.mark.cluster
@on("dask", "ray")
def test_a_bar_says_what_is_being_built_on_clusters(engine: Any, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    file = Watched("building ", 1, scene.gate().open)
    progress = {"file": file}
    assert list(stateful_map(builds_when_open(scene), range(5), n_jobs=2, engine=engine, progress=progress)) == [
        *range(5)
    ]
    assert re.search(r"building \d of 2", file.getvalue())


def test_inline_a_bar_says_before_what_will_be_built() -> None:
    file = io.StringIO()

    class Model:
        def __init__(self) -> None:
            assert "building 1 of 1" in file.getvalue()

        def __call__(self, item: int) -> int:
            return item

    assert list(stateful_map(Model, range(5), n_jobs=1, engine="inline", progress={"file": file})) == [*range(5)]
    assert "building" not in file.getvalue().split("\r")[-1]


@parallel_engines
def test_the_rate_is_counted_from_the_first_result(engine: str, tmp_path: Path) -> None:
    """By a clock of the test's own: building has taken 1000 s of it, and an item none."""
    now = [0.0]

    class Bar(tqdm):  # type: ignore[misc]  # tqdm is untyped
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs, file=file, mininterval=0)
            self._time = lambda: now[0]
            self.start_t = self.last_print_t = 0.0

    scene = new_scene(tmp_path)

    def later() -> None:
        now[0] = 1000.0
        scene.gate().open()

    file = Watched("building", 1, later)
    found = []
    for item in stateful_map(builds_when_open(scene), range(10), n_jobs=1, batch_size=1, engine=engine, progress=Bar):
        found.append(item)
        now[0] += 1.0
    assert found == list(range(10))
    rates = [float(rate) for rate in re.findall(r"([\d.]+)it/s", file.getvalue())]
    slow = [float(rate) for rate in re.findall(r"([\d.]+)s/it", file.getvalue())]
    assert rates or slow
    assert all(seconds < 10 for seconds in slow), "the time of building counted as an item's"


def test_a_bar_says_again_when_the_only_worker_is_built_anew(tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    log = scene.log("builds")

    class Dies:
        def __init__(self) -> None:
            log.note("")
            if len(log.lines) > 1:
                scene.gate().wait()

        def __call__(self, item: int) -> int:
            if item == 3 and len(log.lines) == 1:
                crash()
            return item

    file = Watched(r"[1-3]/6 [^\r]*, building 1 of 1\]", 1, scene.gate().open)
    progress = {"file": file, "mininterval": 0}
    assert list(stateful_map(Dies, range(6), n_jobs=1, batch_size=1, retries=1, progress=progress)) == list(range(6))
    assert "building" not in file.getvalue().rstrip().split("\r")[-1]


@parallel_engines
def test_a_bar_of_the_users_own_gets_its_words_back(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    file = Watched("mine, building", 1, scene.gate().open)
    with tqdm(total=5, file=file, postfix="mine") as bar:
        assert list(stateful_map(builds_when_open(scene), range(5), n_jobs=1, engine=engine, progress=bar)) == [
            *range(5)
        ]
        assert (bar.n, bar.postfix) == (5, "mine")


@parallel_engines
def test_a_bar_without_a_place_for_words_is_left_alone(engine: str, tmp_path: Path) -> None:
    class Plain:
        n = 0

        def update(self, n: int) -> None:
            self.n += n

        def close(self) -> None:
            raise AssertionError("it is the user's")

    bar = Plain()
    scene = new_scene(tmp_path)
    threading.Timer(1.0, scene.gate().open).start()  # longer than it would take until something is said
    assert list(stateful_map(builds_when_open(scene), range(5), n_jobs=1, engine=engine, progress=bar)) == [*range(5)]
    assert bar.n == 5


@parallel_engines
def test_a_bar_says_nothing_of_building_where_all_objects_stand(engine: str) -> None:
    class Model:
        def __call__(self, item: int) -> int:
            threading.Event().wait(0.4 * (item == 0))
            return item

    with StatefulExecutor(Model, 1, engine=engine) as executor:
        executor.warm_up()
        file = io.StringIO()
        assert list(stateful_map(executor, range(3), batch_size=1, progress={"file": file})) == [0, 1, 2]
    assert "building" not in file.getvalue()
    assert "starting" not in file.getvalue()


@parallel_engines
def test_a_bar_of_joblibs_calls_says_what_is_being_built(engine: str, tmp_path: Path) -> None:
    scene = new_scene(tmp_path)
    file = Watched("building 2 of 2", 2, scene.gate().open)
    options = {"worker": builds_when_open(scene), "engine": engine, "progress": {"file": file}}
    with parallel_config(backend="stateful", n_jobs=2, **options):
        assert Parallel()(delayed(abs)(-item) for item in range(10)) == list(range(10))
    last = file.getvalue().rstrip().split("\r")[-1]
    assert "10it" in last
    assert "building" not in last


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param("jupyter-console", "tqdm.std", marks=needs("proc")), ("jupyter-lab", "tqdm.auto")]
)
def test_a_kernel_that_a_console_has_started_gets_a_bar_of_text(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    starter = tmp_path / name
    starter.write_text(
        textwrap.dedent("""
        import os, subprocess, sys
        kernel = "import ipykernel.zmqshell; from joblib_stateful._map import _progress; print(_progress._tqdm().__module__)"
        env = {**os.environ, "JPY_PARENT_PID": str(os.getpid())}  # as Jupyter sets it
        sys.exit(subprocess.run([sys.executable, "-c", kernel], env=env).returncode)
        """)
    )
    done = subprocess.run([sys.executable, str(starter)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"{kind}\n"), done.stderr
