#!/usr/bin/env bash
# onnxruntime 1.32.0: the environment variable ORT_INTRA_OP_NUM_THREADS decides how many threads a session computes with, and
# the session's options go on saying 0 ("the default"). A number in SessionOptions goes before it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==1.32.0" "onnx==1.23.2"
cat >"$folder/program.py" <<'PROGRAM'
import os
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [256, 256]) for name in "abc"]
graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "graph", ends[:2], ends[2:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
options = ort.SessionOptions()
if sys.argv[1:]:
    options.intra_op_num_threads = int(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
square = np.ones((256, 256), np.float32)
session.run(None, {"a": square, "b": square})
print(f"options say {session.get_session_options().intra_op_num_threads}, threads started: {len(os.listdir('/proc/self/task')) - before}")
PROGRAM
python="$folder/venv/bin/python"
{
  echo "variable 1: $(ORT_INTRA_OP_NUM_THREADS=1 "$python" "$folder/program.py")"
  echo "variable 3: $(ORT_INTRA_OP_NUM_THREADS=3 "$python" "$folder/program.py")"
  echo "variable 1, option 3: $(ORT_INTRA_OP_NUM_THREADS=1 "$python" "$folder/program.py" 3)"
} | tee "$folder/seen"
grep -qx "variable 1: options say 0, threads started: 0" "$folder/seen"
grep -qx "variable 3: options say 0, threads started: 2" "$folder/seen"
grep -qx "variable 1, option 3: options say 3, threads started: 2" "$folder/seen"
echo "as described"
