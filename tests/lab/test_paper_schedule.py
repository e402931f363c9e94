"""The page of docs/paper_schedule.md against the committed results, recomputed plainly."""

import re
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from trainonce.records import read_lines

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "paper_schedule.md").read_text()
SETS = {"MNIST": DOCS / "results/paper-mnist", "CIFAR-10": DOCS / "results/paper-cifar10"}
ON_A_CPU = DOCS / "results/paper-mnist-cpu"


def means(folder: Path) -> dict[str, list[float]]:
    """The mean top-1 of each run, by arm of three seeds, in their order; 60 subnets each, the same in all."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for line in read_lines(folder / "results.jsonl"):
        found.setdefault((line["arm"], line["seed"]), {})[line["arch"]] = line["top1"]
    assert len({frozenset(subnets) for subnets in found.values()}) == 1
    assert {len(subnets) for subnets in found.values()} == {60}
    arms = {arm for arm, _ in found if all((arm, seed) in found for seed in range(3))}
    return {arm: [fmean(found[arm, seed].values()) for seed in range(3)] for arm in arms}


@pytest.mark.parametrize("name", SETS)
def test_the_table_of_trainings(name: str) -> None:
    seconds: dict[str, list[float]] = {}
    for line in read_lines(SETS[name] / "times.jsonl"):
        seconds.setdefault(line["arm"], []).append(line["train_seconds"])
    for arm, tops in means(SETS[name]).items():
        (row,) = re.findall(rf"^\| {name} \| `{arm}` \| (.*) \|$", PAGE, re.MULTILINE)
        shown = [f"{top:.1f}" for top in (*tops, fmean(tops))]
        assert row.split(" | ")[1:] == [*shown, f"{fmean(seconds[arm]):.0f}"]


@pytest.mark.parametrize("other", ["ps", "rss-short"])
def test_the_differences(other: str) -> None:
    (row,) = re.findall(rf"^\| [15]\. `rss` − `{other}`.*$", PAGE, re.MULTILINE)
    (again,) = re.findall(rf"^\| [15] again: `rss` − `{other}`.*$", PAGE, re.MULTILINE)
    (of_mnist, of_cifar10), on_a_cpu = row.split(" | ")[1:3], again.split(" | ")[1]
    cells = {SETS["MNIST"]: of_mnist, SETS["CIFAR-10"]: of_cifar10, ON_A_CPU: on_a_cpu}
    for folder, cell in cells.items():
        tops = means(folder)
        apart = np.subtract(tops["rss"], tops[other])
        low, high = stats.t.interval(0.95, 2, apart.mean(), stats.sem(apart))
        p = stats.ttest_1samp(apart, 0).pvalue
        assert cell == f"{apart.mean():+.1f} ({low:.1f} to {high:.1f}), p = {p:.3f}"
