"""Sums that stay on the device until they are asked for."""

import random

import torch

from trainonce.space import Architecture
from trainonce.training.step_sums import StepRecord, StepSums, not_finite

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
    assert saved == {"steps": 50, "losses": len(losses), "images": 8 * len(losses), "correct": right}


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
