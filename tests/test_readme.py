"""The README can be believed: its first commands run as they stand, and what it points to is there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(heading: str) -> list[list[str]]:
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_first_commands_run_as_they_stand(tmp_path: Path) -> None:
    """In a copy of the tree, so that a user's runs/ stay as they are."""
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    ran = 0
    for command in commands("Try it"):
        if command[0] == "pip":
            continue
        assert command[0] == "python"
        finished = subprocess.run(
            [sys.executable, *command[1:]],
            cwd=tmp_path,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert finished.returncode == 0, finished.stderr
        if command[1] == "lpoi.py" and "--do_train" not in command:
            assert "loss_listwise" in finished.stdout and "it/s]" in finished.stderr
            assert "'loss': '6.174'" in finished.stdout
        ran += 1
    assert ran == 6
    assert (tmp_path / "demo" / "index.html").is_file() and (tmp_path / "demo" / "demo_data.js").is_file()
    for run in ("first", "second"):
        assert (tmp_path / "runs" / run / "final" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "runs" / "first-evaluation" / "eval_records.jsonl").read_text().count("\n") == 31


def test_the_sample_scores_as_the_readme_says() -> None:
    command = next(command for command in commands("Answer and score") if "data/sample/amber/answers.json" in command)
    data = ROOT.parent / "shared" / "benchmarks" / "nltk_data"
    if not data.is_dir():
        pytest.skip("NLTK's data is not beside the checkout")
    printed = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=ROOT,
        env=os.environ | {"NLTK_DATA": str(data)},
        capture_output=True,
        text=True,
    ).stdout
    expected = README.split("```\nDescriptions")[1].split("```")[0]
    assert "Descriptions" + expected.rstrip() in printed


def test_every_path_that_is_named_exists() -> None:
    for document in (ROOT / "README.md", ROOT / "data" / "README.md", ROOT / "checkpoints" / "README.md"):
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
        local = [link for link in links if "://" not in link]
        for link in local:
            assert (document.parent / link).exists(), f"{document.name} points to {link}"
    assert len(re.findall(r"`?python (\S+\.py)", README)) >= 8
    for program in re.findall(r"python (\S+\.py)", README):
        assert (ROOT / program).is_file(), program


def test_every_option_that_is_named_exists() -> None:
    from transformers import HfArgumentParser

    from listwise_preference.training import options as arguments

    groups = (
        arguments.ModelArguments,
        arguments.DataArguments,
        arguments.ObjectiveArguments,
        arguments.TrainerArguments,
    )
    known = {"--config", "--help"} | {
        option
        for action in HfArgumentParser(groups)._actions  # type: ignore[arg-type]
        for option in action.option_strings
    }
    sections = dict(re.findall(r"\n## ([^\n]+)\n(.*?)(?=\n## |$)", README, flags=re.DOTALL))
    headings = ("Try it", "Train on the paper's data", "Train on your own", "What a run leaves", "How it computes")
    training = "".join(sections[heading] for heading in headings)
    used = set(re.findall(r"(?<![\w-])--[a-z_]+", training))
    assert used - known <= {"--family", "--output", "--multi_gpu", "--num_processes"}
