"""A missing optional dependency is a sentence that says how to install it, the same everywhere."""

import re
from pathlib import Path

import pytest

import trainonce
from trainonce import UserError
from trainonce.extras import try_import

SOURCE = Path(trainonce.__file__).parent


@pytest.mark.parametrize(
    ("extras", "told", "sentence"),
    [
        (("search",), False, "a search needs an extra: pip install 'trainonce[search]'"),
        (("onnx", "openvino"), False, "a search needs extras: pip install 'trainonce[onnx,openvino]'"),
        (
            ("onnx",),
            True,
            "a search needs an extra: pip install 'trainonce[onnx]' (No module named 'no_such_package')",
        ),
    ],
)
def test_the_sentence(extras: tuple[str, ...], told: bool, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"), try_import("a search", *extras, told=told):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401


def test_what_is_installed_passes() -> None:
    with try_import("this", "plot"):
        import json
    assert json.loads("1") == 1


def test_nothing_else_writes_the_sentence() -> None:
    assert [path.name for path in sorted(SOURCE.rglob("*.py")) if "pip install" in path.read_text()] == ["extras.py"]
