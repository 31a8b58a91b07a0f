#!/usr/bin/env bash
# cloudpickle 3.1.3: a function of a script that has a `typing.NewType` of that script in its annotations is sent with all its
# code, but the type by its name, so that no other process can load it. A `ParamSpec` or `TypeVarTuple` is the same; a `TypeVar`
# travels. Nothing is wrong with the function, which never uses its annotations.
# Seen: dumps raises nothing; loads in another interpreter raises AttributeError, but for the TypeVar.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check cloudpickle==3.1.3
cat >"$folder/program.py" <<'PROGRAM'
import subprocess
import sys
import typing

import cloudpickle

UserId = typing.NewType("UserId", int)
P = typing.ParamSpec("P")
T = typing.TypeVar("T")
LOAD = """
import cloudpickle, sys
try:
    print(cloudpickle.loads(sys.stdin.buffer.read())(3))
except AttributeError as error:
    print(type(error).__name__)
"""


def of_new_type(user: UserId):
    return user


def of_parameters(user, function: typing.Callable[P, int] = None):
    return user


def of_type_variable(user: T) -> T:
    return user


for function in (of_new_type, of_parameters, of_type_variable):
    done = subprocess.run([sys.executable, "-c", LOAD], input=cloudpickle.dumps(function), capture_output=True, check=True)
    print(f"{function.__name__}: {done.stdout.decode().strip()}")
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" | tee "$folder/seen"
grep -qx "of_new_type: AttributeError" "$folder/seen"
grep -qx "of_parameters: AttributeError" "$folder/seen"
grep -qx "of_type_variable: 3" "$folder/seen"
echo "as described"
