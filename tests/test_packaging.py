"""What pip is told: the pinned versions lie in the ranges, and every command is one."""

import importlib.util
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from .conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> dict[str, str]:
    """Package -> its one version."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {package.lower(): version for package, version in pinned}


def ranges(lines: list[str]) -> dict[str, Requirement]:
    return {requirement.name.lower(): requirement for requirement in map(Requirement, lines)}


@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ("requirements.txt", PROJECT["dependencies"]),
        ("requirements-dev.txt", PROJECT["optional-dependencies"]["dev"]),
    ],
)
def test_every_range_has_a_pinned_version_in_it(file: str, lines: list[str]) -> None:
    pinned, allowed = pins(file), ranges(lines)
    assert pinned.keys() == allowed.keys()
    assert [name for name, version in pinned.items() if version not in allowed[name].specifier] == []


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_every_command_shows_its_help(command: str) -> None:
    """Called as pip's script calls it, without arguments of its own."""
    module, _, function = PROJECT["scripts"][command].partition(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = {command!r}; {function}()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {command} ")


def test_the_package_holds_its_own_data() -> None:
    """Every file of the package that is not Python is named in package-data, so that a wheel has it."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    for file in (ROOT / "listwise_preference").rglob("*"):
        if file.is_file() and file.suffix not in (".py", ".pyc"):
            package = ".".join(file.parent.relative_to(ROOT).parts)
            named = any(file.match(pattern) for pattern in data["*"])
            folder, _, rest = package.rpartition(".")
            assert named or any(file.match(pattern) for pattern in data.get(folder, ()) if rest), file
    assert importlib.util.find_spec("listwise_preference") is not None
