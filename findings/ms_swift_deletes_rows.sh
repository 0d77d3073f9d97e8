#!/usr/bin/env bash
# ms-swift 4.6.0, datasets 4.8.4, torch 2.13.0, CPU. Two rows of a preference file: one with `rejected_response`, one with
# the same response on another image, `rejected_images`, as the documentation shows each. One expects both to be kept, as
# each is kept in a file of its own. Together the second is deleted: in the table of both rows it has a
# `rejected_response` too, which is null, and a row with a null one is deleted, with a traceback in the log and no error.
# Seen (rows kept): text 1, image 1, both 1
# Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet ms-swift==4.6.0 datasets==4.8.4
cd "$folder"
cat > run.py <<'PY'
import json
import sys

from swift.dataset import load_dataset

messages = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}]
text = {"messages": messages, "images": ["a.png"], "rejected_response": "A dog."}
image = {"messages": messages, "images": ["a.png"], "rejected_images": ["b.png"]}
kept = {}
for name, rows in {"text": [text], "image": [image], "both": [text, image]}.items():
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    kept[name] = len(load_dataset(f"{name}.jsonl")[0])
print("rows kept:", ", ".join(f"{name} {count}" for name, count in kept.items()))
sys.exit(kept != {"text": 1, "image": 1, "both": 1})
PY
HF_HUB_OFFLINE=1 venv/bin/python run.py 2> errors.txt || { tail -3 errors.txt; exit 1; }
