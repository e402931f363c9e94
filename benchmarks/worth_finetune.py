"""What is to be kept of fine-tuning: which epoch, and whether at all, by what validate says.

    python benchmarks/worth_finetune.py SET … [--images 120000] [--seconds 25] [--out worth_finetune.jsonl]

Each SET, as `worth.py` takes it, is trained by `quick` in the geometry `light` with so many images in all. For devices
of 25, 50 and 100% of the largest MACs the best of 12 candidates, by loss on validate, is fine-tuned for so many seconds
of the clock by two seeds, and scored before and after each epoch on validate and on test (at most 2,000 images). Each
is a line of the file. It ends with a table: top-1 on test of what each rule would hand over, mean over a set's devices
and seeds; without a SET there is the table alone.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from common import machine
from trainonce.data import DataSet
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score
from trainonce.evaluation.population import draw_candidates
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES
from trainonce.records import append_line, read_lines
from trainonce.settings import JsonObject
from trainonce.subnets.finetune import FinetuneSettings, finetune, finetuning_pace
from worth import loaded
from worth_sizes import options, trained
from worth_table import DEVICES

CANDIDATES, SEEDS, MOST_TEST = 12, 2, 2000


class Scored(NamedTuple):
    """A network's top-1 in percent and loss on validate and on test."""

    top1: float
    loss: float
    test_top1: float
    test_loss: float


Rule = Callable[[Scored, Sequence[Scored]], Scored]


def by_top1(epochs: Sequence[Scored]) -> Scored:
    """The epoch of the highest top-1, of equals the one of least loss."""
    return max(epochs, key=lambda one: (one.top1, -one.loss))


def by_loss(epochs: Sequence[Scored]) -> Scored:
    """The epoch of least loss."""
    return min(epochs, key=lambda one: one.loss)


def _if_higher(before: Scored, after: Scored) -> Scored:
    return after if after.top1 > before.top1 else before


def _if_less(before: Scored, after: Scored) -> Scored:
    return after if after.loss < before.loss else before


RULES: dict[str, Rule] = {
    "not fine-tuned": lambda before, _: before,
    "the epoch of highest top-1, if that rose": lambda before, epochs: _if_higher(before, by_top1(epochs)),
    "the epoch of highest top-1": lambda _, epochs: by_top1(epochs),
    "the last epoch": lambda _, epochs: epochs[-1],
    "the epoch of least loss, if that fell": lambda before, epochs: _if_less(before, by_loss(epochs)),
}


class _OnBoth(Evaluator):
    """Scores on validate, and on the side on test."""

    test: Evaluator
    seen: list[Scored]

    def score_recalibrated(self, plain: nn.Module) -> Score:
        one, other = super().score_recalibrated(plain), self.test.score_recalibrated(plain)
        self.seen.append(Scored(one.top1, one.loss, other.top1, other.loss))
        return one


def measure(net: MobileNetV3, data: DataSet, seconds: float) -> list[JsonObject]:
    """For each device and seed of fine-tuning the scores before and after each epoch."""
    settings = EvaluateSettings(calibration_images=400)
    both, test = _OnBoth(data, "validate", settings), Evaluator(data, "test", settings)
    both.test, both.seen, found = test, [], list[JsonObject]()
    most = net.cost_of(net.space.largest()).macs
    for device in DEVICES:
        [archs] = draw_candidates(net.cost, [device * most], CANDIDATES, seed=0)
        scores = {arch: both(net, arch) for arch in archs}
        best = min(scores, key=lambda arch: scores[arch].loss)
        network, on_test = both.recalibrated(net, best), test(net, best)
        for seed in range(SEEDS):
            how = FinetuneSettings.by("sgd", epochs=1, label_smoothing=0.1, seed=seed)
            epochs = finetuning_pace(network, both, how).epochs_within(seconds)
            both.seen = []
            finetune(network, both, how.model_copy(update={"epochs": max(1.0, epochs)}))
            before = Scored(scores[best].top1, scores[best].loss, on_test.top1, on_test.loss)
            epochs_seen: list[Any] = [list(one) for one in both.seen]
            found.append({"device": device, "seed": seed, "before": list(before), "epochs": epochs_seen})
    return found


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each rule, a column for each set, and the mean over the sets."""
    sets = list(dict.fromkeys(line["data"] for line in lines))
    rows = [f"| kept | {' | '.join(sets)} | mean |", "|---" * (len(sets) + 2) + "|"]
    for name, rule in RULES.items():
        of_sets = [
            statistics.fmean(
                rule(Scored(*line["before"]), [Scored(*epoch) for epoch in line["epochs"]]).test_top1
                for line in lines
                if line["data"] == one
            )
            for one in sets
        ]
        rows.append(f"| {name} | {' | '.join(f'{top1:.2f}' for top1 in (*of_sets, statistics.fmean(of_sets)))} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each set, and print the table of all that the file holds."""
    asked = options(arguments, __doc__, images=120_000, seconds=25.0, out="worth_finetune.jsonl")
    torch.set_num_threads(1)
    print(machine())
    for name_or_path in asked.sets:
        name, data = loaded(name_or_path, 5000)
        data = replace(data, test=data.test.drawn(MOST_TEST, seed=0))
        net = trained(data, asked.images)
        for line in measure(net, data.varied_by(RECIPES["quick"]), asked.seconds):
            append_line(asked.out, {"data": name, "images": asked.images} | line)
    print(table(list(read_lines(asked.out))))


if __name__ == "__main__":
    main()
