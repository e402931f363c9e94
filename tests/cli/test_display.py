"""What the commands print."""

import io
import re

import pytest
from rich.console import Console

from trainonce.cli import display
from trainonce.cli.display import recipe_plan
from trainonce.recipes import Phase, Recipe


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "the whole space"),
        ({"keep_largest": {"depth": 1}}, "depth: the largest"),
        ({"keep_smallest": {"depth": 2}}, "depth: the 2 smallest"),
        (
            {"keep_largest": {"resolution": 2}, "keep_smallest": {"resolution": 1}},
            "resolution: the smallest of the 2 largest",
        ),
        ({"restrict": {"kernel": (3, 5)}, "couple": {"width": "depth"}}, "kernel: 3/5, width: by depth"),
    ],
)
def test_a_plan_says_what_a_phase_trains(fields: dict[str, dict[str, int]], says: str) -> None:
    recipe = Recipe(name="r", about="R.", phases=(Phase(name="a", epochs=1, **fields),))
    assert trained(recipe) == [says]


@pytest.mark.parametrize(
    ("lacking", "says"), [("kernel", "width: by depth"), ("depth", "kernel: 3/5"), ("width", "kernel: 3/5")]
)
def test_and_nothing_of_what_the_network_lacks(lacking: str, says: str) -> None:
    phase = Phase(name="a", epochs=1, restrict={"kernel": (3, 5)}, couple={"width": "depth"})
    assert trained(Recipe(name="r", about="R.", phases=(phase,)), lacking) == [says]


def trained(recipe: Recipe, *lacking: str) -> list[object]:
    (column,) = (column for column in recipe_plan(recipe, lacking).columns if column.header == "trains")
    return list(column.cells)


def test_a_narrow_terminal_has_the_bar_and_the_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    file, said = io.StringIO(), "11 s left; early, epoch 0.6: loss 2.210, top-1 19.8%, lr 0.03, subnet 1.60 M MACs"
    monkeypatch.setattr(display, "err", Console(file=file, force_terminal=True, width=40, soft_wrap=True))
    with display.progress() as show:
        show(5, 20, said)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).replace("\r", "")
    assert re.search(r"[━╸]{20,} +5/20\n", shown)
    assert said.split() == shown.rsplit("5/20\n", 1)[1].split()
