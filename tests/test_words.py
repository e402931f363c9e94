"""One name for one thing, and the field's words: what can be held of that."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "trainonce"
PAGES = [*(ROOT / "docs").rglob("[!L]*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PRIVATE = re.compile(r"\b(conductors?|memos?|tall(y|ies)|wish(es)?|to be had|rightly)\b", re.IGNORECASE)
"""Words that this project once used for things that have a name in the field, and turns that stop a reader."""
NUMBER = r"(\d+|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|twenty)"
COUNTED = re.compile(rf"\b{NUMBER} ([a-z-]+ )?(recipes|strategies)\b", re.IGNORECASE)
"""A count of the recipes, which is wrong as soon as one is added."""


def test_no_class_name_is_defined_twice() -> None:
    names = Counter(
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_use_the_fields_words(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert PRIVATE.search(text) is None
    assert COUNTED.search(text) is None


def test_what_the_commands_say_uses_them_too() -> None:
    """Help, errors and the report's sentences are strings of the package; its docstrings are the reference."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {said.group()}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value != "tally"  # a checkpoint's key
        for said in (*PRIVATE.finditer(node.value), *COUNTED.finditer(node.value))
    ]
    assert found == []
