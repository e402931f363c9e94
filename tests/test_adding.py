"""What docs/architecture/adding.md shows: each change applies to the files there are, and touches what is named."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture" / "adding.md"
SECTION = re.compile(r"^## (.+?)\n(.*?)```diff\n(.*?)```", re.MULTILINE | re.DOTALL)
CHANGES = {title: (text, diff) for title, text, diff in SECTION.findall(PAGE.read_text(encoding="utf-8"))}
COPIED = ("src", "tests", "docs", "pyproject.toml", "README.md", "CHANGELOG.md")


def files_of(diff: str) -> list[str]:
    """The files that a change touches."""
    return re.findall(r"^\+\+\+ b/(\S+)$", diff, re.MULTILINE)


def new_files_of(diff: str) -> list[str]:
    """Those of them that it makes."""
    return re.findall(r"^diff --git a/(\S+) .*\nnew file", diff, re.MULTILINE)


def test_all_six_are_there() -> None:
    assert list(CHANGES) == ["A recipe", "A family", "An export target", "A data format", "A study", "A measure"]


@pytest.mark.parametrize("title", CHANGES)
def test_a_change_applies(title: str) -> None:
    """As git does it, so that a line that has changed since is met here."""
    diff = CHANGES[title][1]
    done = subprocess.run(
        ["git", "apply", "--check", "-"], input=diff, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("title", CHANGES)
def test_the_page_names_what_a_change_touches(title: str) -> None:
    """In the table, by file, and by folder where the file is new; and it brings a test."""
    diff = CHANGES[title][1]
    (row,) = re.findall(rf"^\| {title[0].lower()}{title[1:]} \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    changed = [name for name in files_of(diff) if name.startswith("src/trainonce/")]
    expected = [f"{Path(name).parent}/" if name in new_files_of(diff) else name for name in changed]
    assert sorted(f"src/trainonce/{name}" for name in re.findall(r"`([^`]+)`", row)) == sorted(expected)
    assert any(name.startswith("tests/") for name in files_of(diff))
    assert all(name.startswith(("src/trainonce/", "tests/")) for name in files_of(diff))


@pytest.mark.long
@pytest.mark.parametrize("title", CHANGES)
def test_a_change_works(title: str, tmp_path: Path) -> None:
    """In a copy of the project, the tests that it brings pass, with those that hold names against their owners."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    diff = CHANGES[title][1]
    subprocess.run(["git", "apply", "-"], input=diff, cwd=tmp_path, text=True, check=True)
    brought = [name for name in files_of(diff) if name.startswith("tests/")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *brought, "tests/cli/test_known.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
