"""Lines that are read and checked in one go are what reading them one by one gives, errors included."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.lines import a_score, a_stretch

from trainonce.errors import UserError
from trainonce.files import LARGEST_NUMBER
from trainonce.records import append_line, write_lines
from trainonce.run.lines import MetricsLine, SubnetScore

NUMBERS = st.integers(-int(LARGEST_NUMBER) + 1, int(LARGEST_NUMBER) - 1) | st.floats(
    -LARGEST_NUMBER, LARGEST_NUMBER, exclude_min=True, exclude_max=True
)
VALUES = {"loss": NUMBERS, "top1": NUMBERS, "macs": NUMBERS, "arch": st.text(), "step": st.integers(-(2**70), 2**70)}


def sealed(path: Path, *texts: bytes) -> None:
    """Lines with right sums of texts that need not be what we write."""
    last, content = hashlib.sha256(b"").hexdigest()[:16].encode(), b""
    for text in texts:
        last = hashlib.sha256(last + b"\n" + text).hexdigest()[:16].encode()
        content += text[:-1] + b', "sum": "' + last + b'"}\n'
    path.write_bytes(content)


@settings(deadline=None)
@given(lines=st.lists(st.fixed_dictionaries(VALUES), max_size=4), calibration=st.none() | st.fixed_dictionaries(VALUES))
def test_every_number_and_text_comes_back(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]], calibration: dict[str, Any] | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    written = [a_score(**line, calibration=calibration).to_json() for line in lines]
    write_lines(path, written)
    found = [line.to_json() for line in SubnetScore.read_lines(path)]
    assert found == written
    assert json.dumps(found) == json.dumps(written), "whole numbers stay whole and fractions fractions"


def test_half_a_character_is_read(tmp_path: Path) -> None:
    line = a_stretch(1, arch="a path \udcff that is not UTF-8")
    append_line(tmp_path / "lines.jsonl", line.to_json())
    assert MetricsLine.read_lines(tmp_path / "lines.jsonl") == [line]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b'{"step": 2}', "line 2: its 'phase' is missing or of another kind"),
        (b'{"step": NaN}', "line 2: its 'step' is missing or of another kind"),
        (b'{"step": 2}, {"step": 3}', "line 2 is not JSON: Extra data"),
        (b'{"step": 2,}', "line 2 is not JSON: "),
        (b'{"step": ' + b"9" * 5000 + b"}", "line 2 is not JSON: Exceeds the limit"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: bytes, wrong: str) -> None:
    path = tmp_path / "lines.jsonl"
    sealed(path, json.dumps(a_stretch(1).to_json()).encode(), text)
    with pytest.raises(UserError, match=f"lines.jsonl, {wrong}"):
        MetricsLine.read_lines(path)


def test_a_line_that_holds_two_is_refused(tmp_path: Path) -> None:
    path, text = tmp_path / "lines.jsonl", json.dumps(a_stretch(1).to_json()).encode()
    sealed(path, text + b", " + text)
    with pytest.raises(UserError, match=r"lines.jsonl, line 1 is not JSON: Extra data"):
        MetricsLine.read_lines(path)
