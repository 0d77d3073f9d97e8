"""The README and docs can be believed: their commands run as they stand, and what they name is there."""

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from listwise_preference.scoring.benchmarks import BENCHMARKS

from .conftest import ROOT

README = ROOT / "README.md"
DOCUMENTS = [
    README,
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs" / "evidence" / "README.md",
    *(ROOT / folder / "README.md" for folder in ("data", "data/sample", "checkpoints", "checkpoints/small-idefics2")),
    ROOT / "benchmarks" / "RESULTS.md",
    ROOT / "CHANGELOG.md",
]
INSTALL = [
    "pip install -r requirements.txt && python demo.py",
    "pip install -r requirements.txt -r requirements-dev.txt && pytest -n 2",
]
# Commands of the README that need the paper's data or AMBER's, and what they stop at where it is missing.
NEED_DOWNLOADS = {
    "lpoi.py": "data/sample_10k_llava.json",
    "lpoi_llava.py": "data/sample_10k_llava.json",
    "lpoi_llava_13b.py": "data/sample_10k_llava.json",
    "generate-idefics-lpoi-amber.py": "checkpoints/idefics2-8b-lpoi-list5-10k/final",
    "score.py amber runs/idefics2-8b-lpoi-list5-10k-amber.json --data data/AMBER": "data/AMBER",
}


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """The lines of a document's bash blocks, comments cut off."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [shlex.join(shlex.split(line, comments=True)) for block in blocks for line in block.splitlines() if line]


def test_readme_is_short_and_installs_by_two_commands() -> None:
    assert len(read(README).splitlines()) < 200
    block = re.search(r"```bash\n(.*?)```", read(README), flags=re.DOTALL)
    assert block is not None and block[1].splitlines() == INSTALL, "the first block is the two commands"
    assert read(README).count("pip install -r") == len(INSTALL)


# ---- the commands run ----


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files in a folder of their own, so that a user's runs/ stay as they are."""
    folder = tmp_path_factory.mktemp("clone")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    assert program == "python", command
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_the_demo_runs(clone: Path) -> None:
    finished = run(INSTALL[0].partition(" && ")[2], clone)
    assert finished.returncode == 0, finished.stderr
    assert (clone / "demo" / "index.html").is_file() and (clone / "demo" / "demo_data.js").is_file()


@pytest.mark.slow
def test_the_readme_runs_from_lists_to_scores(clone: Path, english_data: Path) -> None:
    """Every command but the installing ones; those that need a download stop at once and say what is missing."""
    ran, stopped = 0, set()
    for command in commands(read(README)):
        if command.startswith("pip install"):
            continue
        finished = run(command, clone)
        missing = NEED_DOWNLOADS.get(command.removeprefix("python "))
        if missing is not None:
            assert finished.returncode == 2 and missing in finished.stderr, (command, finished.stderr)
            assert "Traceback" not in finished.stderr
            stopped.add(command.removeprefix("python "))
            continue
        assert finished.returncode == 0, (command, finished.stderr)
        ran += 1
        if command.startswith("python lpoi.py"):
            assert "6.1738" in finished.stdout
        if command.startswith("python score.py"):
            table = read(README).split("```\nDescriptions")[1].split("```")[0].rstrip()
            assert "Descriptions" + table in finished.stdout
    assert ran == 5 and stopped == set(NEED_DOWNLOADS)
    assert (clone / "runs" / "lists" / "review" / "index.html").is_file()
    assert (clone / "runs" / "first" / "final" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_training_page_runs(clone: Path) -> None:
    ran = commands(read(ROOT / "docs" / "training.md"))
    for command in ran:
        finished = run(command, clone)
        assert finished.returncode == 0, (command, finished.stderr)
        if command.startswith("python lpoi") and "--do_train" not in command:
            assert "6.1738" in finished.stdout
    assert len(ran) == 5
    for name in ("sample", "second"):
        assert (clone / "runs" / name / "final" / "adapter_model.safetensors").is_file()
    assert (clone / "runs" / "sample-evaluation" / "eval_records.jsonl").read_text().count("\n") == 31


# ---- what is named is there ----


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_link_and_path_leads_somewhere(document: Path) -> None:
    text = read(document)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", read(target), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}, link
    for path in re.findall(r"`([\w.-]+/[\w./-]+)`", text):
        folder = path.partition("/")[0]
        if folder in ("asset", "benchmarks", "docs", "listwise_preference", "tests"):
            assert (ROOT / path).exists(), path


PROGRAMS = {
    "lpoi.py": ["lpoi.py"],
    "make_pairs.py": ["make_pairs.py"],
    "make_image_lists.py": ["make_image_lists.py"],
    "generate.py": ["generate.py"],
    "demo.py": ["demo.py"],
    "merge.py": ["merge.py"],
    **{f"score.py {one}": ["score.py", one] for one in (*BENCHMARKS, "awareness", "beaf-pairs", "compare", "table")},
    "-m listwise_preference.data": ["-m", "listwise_preference.data"],
    **{
        f"-m listwise_preference.small_world.{one}": ["-m", f"listwise_preference.small_world.{one}"]
        for one in ("data", "model", "pretrain")
    },
    **{
        f"benchmarks/{one}.py": [f"benchmarks/{one}.py"]
        for one in ("generation", "image_lists", "objectives", "records", "scoring", "survival", "training_step")
    },
}
SAME_PROGRAM = {
    "lpoi_llava.py": "lpoi.py",
    "lpoi_llava_13b.py": "lpoi.py",
    "lpoi_qwen3_vl.py": "lpoi.py",
    "lpoi_qwen2_5_vl.py": "lpoi.py",
    "lpoi_gemma3.py": "lpoi.py",
    "lpoi_smolvlm.py": "lpoi.py",
    "generate-idefics-lpoi-amber.py": "generate.py",
}


@functools.cache
def help_of(program: str) -> str:
    finished = subprocess.run(
        [sys.executable, *PROGRAMS[program], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return finished.stdout


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def invocations(text: str) -> Iterator[tuple[str, str]]:
    """(program, its arguments) of every command in a text, in a block or in backticks."""
    for spelled, arguments in re.findall(
        r"(?:python|accelerate launch[^`\n]*?) (-m listwise_preference\.[\w.]+|[\w/-]+\.py)([^`\n#]*)",
        text,
    ):
        program = SAME_PROGRAM.get(spelled, spelled)
        if program == "score.py":
            program = f"score.py {arguments.split()[0]}"
        yield program, arguments


# The log and the results tell of commands of the commits that they name.
@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if document.name not in ("log.md", "RESULTS.md")],
    ids=lambda document: str(document.relative_to(ROOT)),
)
def test_every_option_is_one_of_its_program(document: Path) -> None:
    text = re.sub(r"\n  ?(?=\S)", " ", read(document))  # commands are broken at the end of a line
    known = {"--config_file", "--multi_gpu", "--num_processes", "--cpu", "--check"}  # accelerate's, ruff's
    known |= {"--host", "--port", "--enable-lora", "--enable-tower-connector-lora"}  # transformers serve's, vLLM's
    for program, arguments in invocations(text):
        if program not in PROGRAMS:
            assert (ROOT / program).is_file(), program
            continue
        assert options_in(arguments) <= options_in(help_of(program)), f"{program}{arguments}"
        known |= options_in(help_of(program))
    # Where an option is named by itself, it is one of the programs at the top level.
    for program in PROGRAMS:
        if "benchmarks/" not in program and "small_world" not in program:
            known |= options_in(help_of(program))
    assert options_in(text) <= known


# ---- the field's words ----

# Words that only this project used, and what the field says: docs/glossary.md.
DIALECT = re.compile(
    r"\b(pictures?|dice|lures?|hid(?:es?|den|ing)|live|mend(?:s|ed)?|upright|at the door|half a line|a folder a level"
    r"|(?:chosen|rejected|better|worse) answers?|answers files?|answering)\b",
    re.IGNORECASE,
)


def prose(text: str) -> str:
    """Without code and without names of options: a word there is a key, a file or a benchmark's own."""
    text = re.sub(r"```.*?```|`[^`]*`", " ", text, flags=re.DOTALL)
    text = re.sub(r"^    .*$", " ", text, flags=re.MULTILINE)
    return re.sub(r"--[\w-]+( [A-Z_]{2,})?|\S+\.(?:jsonl?|py|md|png)\b", " ", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_documents_use_the_fields_words(document: Path) -> None:
    assert DIALECT.findall(prose(read(document))) == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_texts_use_the_fields_words(program: str) -> None:
    words = re.sub(r"--[\w-]+( [A-Z_]{2,})?|\{[^}]*\}", " ", help_of(program))
    assert DIALECT.findall(words) == []
