"""The stand-alone gap on small tables."""

from typing import Any

import pytest

from trainonce.errors import UserError
from trainonce.lab.studies.gap import stand_alone_gaps


def line(arm: str, arch: str, seed: int, top1: float) -> dict[str, Any]:
    return {"run": f"{arm}-{seed}", "arm": arm, "arch": arch, "seed": seed, "top1": top1, "macs": 1}


LINES = [
    line("super", "a", 0, 70.0),
    line("super", "b", 0, 60.0),
    line("super", "a", 1, 72.0),
    line("alone", "a", 0, 75.0),
    line("alone", "a", 1, 73.0),
    line("alone", "b", 0, 58.0),
    line("alone", "b", 2, 99.0),  # no partner
    line("another", "a", 0, 0.0),
]


def test_by_hand() -> None:
    a, b = stand_alone_gaps(LINES, alone="alone", inside="super")
    assert (a.arch, a.by_seed, a.mean) == ("a", {0: 5.0, 1: 1.0}, 3.0)
    assert (b.arch, b.by_seed, b.mean) == ("b", {0: -2.0}, -2.0)


def test_refusals() -> None:
    with pytest.raises(UserError, match="no subnet is scored with the same seed in both 'alone' and 'else'"):
        stand_alone_gaps(LINES, alone="alone", inside="else")
    with pytest.raises(UserError, match="the arm 'super' scores a twice with seed 0"):
        stand_alone_gaps([*LINES, LINES[0]], alone="alone", inside="super")
