# Runs cells in a kernel, prints what each gave, and presses stop while one hangs.
import asyncio
import json
import os
import sys
import time
import warnings

warnings.simplefilter("ignore")  # Jupyter's own
from pathlib import Path

import nbformat
from jupyter_core.utils import ensure_async
from nbclient import NotebookClient

here = Path(sys.argv[1])

SETUP = f"""
import os, threading, time
from pathlib import Path
from joblib_stateful import stateful_map

here = Path({sys.argv[1]!r})
print(os.getpid())
"""

MODEL = """
class Model:
    def __init__(self, name):
        self.name = name
        with (here / "built").open("a") as file:
            file.write(f"{os.getpid()}\\n")

    def __call__(self, item):
        if item == "hang":
            (here / f"hangs-{os.getpid()}").touch()
            threading.Event().wait()
        # All three workers meet, so that each gets an item.
        (here / f"{item}-{os.getpid()}").touch()
        while len(list(here.glob(f"{item}-*"))) < 3:
            time.sleep(0.001)
        return os.getpid()

def run(items):
    return list(stateful_map(Model, items, worker_kwargs=[{"name": name} for name in "abc"], batch_size=1))
"""

BARS = """
from joblib import Parallel, delayed, parallel_config

def nested(item):
    return sum(Parallel(n_jobs=2)(delayed(abs)(-n) for n in range(item)))

with parallel_config(backend="stateful", n_jobs=2, progress=True):
    Parallel()([delayed(nested)(3)] * 20)
list(stateful_map(abs, range(30), n_jobs=2, progress=True))
"""

HELPER = """
def helper(item):
    return {step} * item

class Caller:
    def __init__(self):
        self.step = helper(1)
    def __call__(self, item):
        return helper(item), self.step
"""

MODULE = """
def call(item):
    return item {sign} 1
"""

edited = here / "edited_by_hand.py"


def edit(text, when):
    edited.write_text(text)
    os.utime(edited, (when, when))


async def main():
    notebook = nbformat.v4.new_notebook()
    client = NotebookClient(notebook, timeout=60, allow_errors=True)

    async def run(text):
        cell = nbformat.v4.new_code_cell(text)
        notebook.cells.append(cell)
        await client.async_execute_cell(cell, len(notebook.cells) - 1)
        texts = [output.get("text") or "\n".join(output.get("traceback", ())) for output in cell.outputs]
        errors = [output.ename for output in cell.outputs if output.output_type == "error"]
        return {"text": "".join(texts).strip(), "errors": errors}

    found = {}
    async with client.async_setup_kernel():
        found["kernel"] = await run(SETUP)
        await run(MODEL)
        found["first"] = await run("print(*run(['one'] * 3))")
        found["again"] = await run("print(*run(['two'] * 3))")
        hanging = asyncio.create_task(run("run(['hang'])"))
        while not list(here.glob("hangs-*")):  # noqa: ASYNC240 - nothing else runs in this loop
            assert not hanging.done(), hanging.result()
            await asyncio.sleep(0.01)
        pressed = time.monotonic()
        await ensure_async(client.km.interrupt_kernel())
        found["stopped"] = {**await hanging, "seconds": time.monotonic() - pressed}
        found["after"] = await run("print(*run(['three'] * 3))")
        await run(MODEL)
        found["defined again"] = await run("print(*run(['four'] * 3))")
        call = "print(*stateful_map(Caller, [1, 2], n_jobs=1))"
        await run(HELPER.format(step=1))
        found["with a helper"] = await run(call)
        await run(HELPER.format(step=10).partition("class")[0])  # only the helper
        found["with an edited helper"] = await run(call)
        edit(MODULE.format(sign="+"), 1_000_000_000)
        await run(f"import sys; sys.path.insert(0, {str(here)!r})")
        for line in ("%load_ext autoreload", "%autoreload 2", "import edited_by_hand"):
            await run(line)
        call = "print(*stateful_map(edited_by_hand.call, [1, 2], n_jobs=1))"
        found["reloaded"] = [await run(call)]
        for when, sign in enumerate("-*/", 1_000_000_010):
            edit(MODULE.format(sign=sign), when)
            found["reloaded"].append(await run(call))
        found["bars"] = {
            **await run(BARS),
            "shown": sum(output.output_type == "display_data" for output in notebook.cells[-1].outputs),
            "states": [
                [state["value"], state["max"], state["bar_style"]]
                for state in client.widget_state.values()
                if state["_model_name"] == "FloatProgressModel"
            ],
        }
    print(json.dumps(found))


asyncio.run(main())
