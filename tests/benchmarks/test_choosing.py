"""By what a subnet is chosen: made-up answers of which the truth is known, and a run of seconds."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from trainonce.records import read_lines


@pytest.fixture
def choosing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("choosing")


def test_of_all_images_the_best_by_each(choosing: Any) -> None:
    """The second is right most often, the third has the least loss, and on test they have 60, 70 and 80%."""
    right = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    loss = torch.tensor([[2.0] * 4, [1.0] * 4, [0.5] * 4])
    test = torch.tensor([[1.0] * 6 + [0] * 4, [1.0] * 7 + [0] * 3, [1.0] * 8 + [0] * 2])
    found = choosing.chosen(choosing.Answers(loss, right), choosing.Answers(test, test), 4, seed=0)
    assert found == pytest.approx({"top1": 70.0, "loss": 80.0, "any": 70.0, "most": 80.0})


def test_of_equals_by_top1_the_first(choosing: Any) -> None:
    right, loss = torch.ones(2, 5), torch.tensor([[1.0] * 5, [0.9] * 5])
    test = torch.tensor([[1.0], [0.0]])
    found = choosing.chosen(choosing.Answers(loss, right), choosing.Answers(test, test), 3, seed=0)
    assert (found["top1"], found["loss"]) == (100.0, 0.0)


def test_of_one_image_as_often_as_it_is_drawn(choosing: Any) -> None:
    """Of four images one is for the second: one draw of one image in four takes it."""
    loss = torch.tensor([[0.0, 0, 0, 1], [1.0, 1, 1, 0]])
    test = torch.tensor([[0.0], [1.0]])
    found = choosing.chosen(choosing.Answers(loss, 1 - loss), choosing.Answers(test, test), 1, seed=0)
    assert found["loss"] == found["top1"] == pytest.approx(25, abs=10)  # four standard deviations of 300 draws


def test_a_run_of_seconds(choosing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there already is not measured again."""
    out, threads = tmp_path / "out.jsonl", torch.get_num_threads()
    monkeypatch.setattr(choosing, "CANDIDATES", 2)
    try:
        for _ in range(2):
            choosing.main(["digits", "--train-images", "100", "--images", "800", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    lines = list(read_lines(out))
    assert [(line["device"], line["validate_images"]) for line in lines] == [
        (device, images) for device in (0.25, 0.5, 1.0) for images in (100,)
    ], "digits have fewer than 250 validate images"
    assert all(line["any"] <= line["most"] and line["top1"] <= line["most"] >= line["loss"] for line in lines)
    assert choosing.table(lines).count("\n| digits |") == 1
