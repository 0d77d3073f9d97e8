"""The shipped small Idefics2: its size, and that it has the scores that its card states."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Run

CHECKPOINT = ROOT / "checkpoints" / "small-idefics2"
# What the card allows another machine's arithmetic, in points of per cent.
TOLERANCE = 1.0


def test_it_is_small_and_whole() -> None:
    files = [file for file in CHECKPOINT.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8 * 1024**2
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "pretraining.json"} <= {
        file.name for file in files
    }
    assert not [file.name for file in files if file.suffix in (".bin", ".pt", ".pkl")]


def test_its_record_holds_the_settings_of_todays_recipe() -> None:
    """So that the one command on the card makes this model again."""
    from listwise_preference.small_world.pretrain import Pretraining

    record = json.loads((CHECKPOINT / "pretraining.json").read_text(encoding="utf-8"))
    made_with = {name: record[name] for name in vars(Pretraining())}
    assert made_with == json.loads(json.dumps(vars(Pretraining())))
    assert len(record["losses"]) == record["steps"]


@pytest.mark.slow
def test_it_has_the_scores_on_its_card(tmp_path: Path, run_program: Run) -> None:
    card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    stated = {name: float(value) for name, value in re.findall(r"^\| ([A-Za-z/ 0-9]+?) \| ([\d.]+) \|$", card, re.M)}
    assert set(stated) == {"CHAIR", "Cover", "Hal", "Cog", "yes/no accuracy", "yes/no F1"}
    scenes = tmp_path / "unseen"
    run_program("-m", "listwise_preference.small_world.data", "--scenes", "400", "--output", scenes)
    run_program(
        "generate.py", "--model_name_or_path", CHECKPOINT, "--dtype", "float32", "--adapter", "none",
        "--benchmark", "amber", "--questions", scenes / "data" / "query" / "query_all.json",
        "--image_root", scenes / "image", "--output", tmp_path / "answers.json", "--batch_size", "64",
        "--max_new_tokens", "40",
    )  # fmt: skip
    scored = subprocess.run(
        [sys.executable, "score.py", "amber", str(tmp_path / "answers.json"), "--data", str(scenes), "--json"],
        cwd=ROOT, env=os.environ | {"NLTK_DATA": str(scenes / "nltk_data")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    scores = json.loads(scored.stdout)
    found = {
        "CHAIR": scores["generative"]["chair"],
        "Cover": scores["generative"]["cover"],
        "Hal": scores["generative"]["hal"],
        "Cog": scores["generative"]["cog"],
        "yes/no accuracy": scores["discriminative"]["accuracy"],
        "yes/no F1": scores["discriminative"]["f1"],
    }
    assert found == pytest.approx(stated, abs=TOLERANCE)
    # the world is worth training in: descriptions are mostly right, and there is something to train away
    assert 10 <= found["CHAIR"] <= 20 and found["Cover"] >= 70 and found["yes/no accuracy"] >= 70
