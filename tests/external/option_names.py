"""Look for each name of docs/other_trainers.md in the packages that it is said to be of; not a part of pytest.

    python -m tests.external.option_names [--work DIR]

Downloads trl 1.16.0, llamafactory 0.9.5 and ms-swift 4.6.0 without what they need, reads the fields of their
dataclasses without running them, and exits with 1 where a name is not where the table says.
"""

import argparse
import ast
import dataclasses
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from transformers import Seq2SeqTrainingArguments

from listwise_preference.training.other_trainers import OTHER_TRAINERS

PACKAGES = {"TRL": "trl==1.16.0", "LLaMA-Factory": "llamafactory==0.9.5", "ms-swift": "ms-swift==4.6.0"}
# Where each keeps its options.
FOLDERS = {
    "TRL": ("trl/trainer/dpo_config.py", "trl/trainer/model_config.py", "trl/scripts/utils.py"),
    "LLaMA-Factory": ("llamafactory/hparams",),
    "ms-swift": ("swift/arguments", "swift/trainers/arguments.py", "swift/rlhf_trainers/arguments.py"),
}
INHERITED = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}


def fields(wheel: Path, folders: tuple[str, ...]) -> set[str]:
    """The annotated names in the classes of these files."""
    found = set()
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            if name.startswith(folders) and name.endswith(".py"):
                classes = (node for node in ast.walk(ast.parse(files.read(name))) if isinstance(node, ast.ClassDef))
                lines = (line for one in classes for line in one.body if isinstance(line, ast.AnnAssign))
                found |= {line.target.id for line in lines if isinstance(line.target, ast.Name)}
    return found


def main() -> None:
    """Compare the table with the packages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "option_names")
    work = parser.parse_args().work
    known = {}
    for whose, package in PACKAGES.items():
        folder = work / whose
        if not list(folder.glob("*.whl")):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
            subprocess.run(pip, check=True)
        known[whose] = fields(next(folder.glob("*.whl")), FOLDERS[whose])
        print(f"{package}: {len(known[whose])} options")
    wrong = 0
    for name, (said, _) in OTHER_TRAINERS.items():
        own = [whose for whose, names in known.items() if name in names]
        # The two others' options are transformers' too, with another's name for them.
        own += [whose for whose in ("LLaMA-Factory", "ms-swift") if name in INHERITED and whose not in own]
        claimed = [one for one in said.split(", ") if one in PACKAGES]
        if set(claimed) - set(own) or (set(own) - set(claimed) and claimed):
            print(f"{name}: said to be of {said}, found in {', '.join(own) or 'none'}")
            wrong += 1
    print(f"{len(OTHER_TRAINERS)} names, {wrong} not where they are said to be")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
