"""Sums that stay on the device until they are asked for."""

import random

import pytest
import torch

from trainonce.space import Architecture
from trainonce.training.step_sums import Known, StepRecord, StepSums, not_finite

CPU = torch.device("cpu")


def test_it_sums_up_and_survives_json() -> None:
    rng = random.Random(0)
    sums, losses, right = StepSums(CPU), list[float](), 0
    for step in range(50):
        if step == 20:
            sums = StepSums.from_json(sums.to_json(), CPU)
        found = [rng.uniform(0, 5) for _ in range(rng.randint(1, 4))]
        hits = rng.randint(0, 8 * len(found))
        sums.add(torch.tensor(found), torch.tensor(float(hits)), 8)
        losses += found
        right += hits
    assert sums.steps == 50
    assert abs(sums.mean_loss() - sum(losses) / len(losses)) < 1e-6
    assert sums.top1() == 100 * right / (8 * len(losses))
    saved = sums.to_json()
    assert abs(saved.pop("loss_sum") - sum(losses)) < 1e-4
    assert saved == {
        "steps": 50,
        "losses": len(losses),
        "images": 8 * len(losses),
        "correct": right,
        "mixed": 0,
        "mixed_correct": 0,
    }


def test_mixed_images_count_as_correct_where_there_are_no_others() -> None:
    sums = StepSums(CPU)
    sums.add(torch.tensor([1.0, 2.0]), torch.tensor(4), 8, mixed=True)
    assert sums.top1() == 25
    sums.add(torch.tensor([3.0]), torch.tensor(6), 8)
    sums = StepSums.from_json(sums.to_json(), CPU)
    assert sums.top1() == 75
    assert sums.mean_loss() == 2
    sums.add(torch.tensor([3.0]), torch.tensor(1), 8, mixed=True)
    assert sums.top1() == 75
    older = {name: value for name, value in sums.to_json().items() if "mixed" not in name}
    assert StepSums.from_json(older, CPU).top1() == 75, "of a checkpoint of before they were counted apart"


def test_what_is_known_is_a_moving_mean_of_looks() -> None:
    rng, known = random.Random(1), Known(CPU)
    new, share = list[float](), 0.0
    for batch in range(57):
        if batch in (0, 20, 33):
            known = Known.from_json(known.to_json() if batch else {}, CPU)
        hits = rng.randint(0, 16)
        known.add(torch.tensor(hits), 16)
        known.look()
        new.append(hits / 16)
        if len(new) == Known.PER_LOOK:
            share, new = Known.KEPT * share + (1 - Known.KEPT) * sum(new) / len(new), []
        assert known.share == pytest.approx(share)


def record(step: int, *losses: float) -> StepRecord:
    archs = tuple(Architecture((("depth", i),)) for i in range(len(losses)))
    rows = torch.arange(step, step + 8)
    return StepRecord(step=step, phase="p", lr=0.5, archs=archs, rows_B=rows, losses_S=torch.tensor(losses))


def test_the_first_loss_that_is_not_finite_is_named() -> None:
    assert not_finite([]) is None
    good = [record(3, 1.0, 2.0), record(4, 0.0)]
    assert not_finite(good) is None
    found = not_finite([*good, record(5, 1.0, float("inf"), 2.0), record(6, float("nan"))])
    assert found == (
        f"the loss is inf at step 5 (phase 'p', learning rate 0.5) for subnet {Architecture((('depth', 1),))} "
        "on training images [5, 6, 7, 8]…"
    )
