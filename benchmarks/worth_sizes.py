"""Which size of images a device's network should take: the best of each size, as it comes out and fine-tuned.

    python benchmarks/worth_sizes.py SET … [--images 70000] [--seconds 10] [--out worth_sizes.jsonl]

Each SET, as `worth.py` takes it, is trained by `quick` in the geometry `light` with so many images in all. For devices
of 25, 50 and 100% of the largest MACs the candidate of least loss on validate of each of the two largest sizes of
images is fine-tuned by two seeds for so many CPU seconds, and for a half of them. Each device, size and time is a line
of the file, with loss and top-1 on validate and top-1 on test (at most 2,000 images). It ends with a table: top-1 on
test of what each rule would hand over for the same time, mean over a set's devices and seeds; without a SET there is
the table alone.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from common import machine
from trainonce.data import DataSet
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.evaluation.population import draw_candidates
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES, Recipe
from trainonce.records import append_line, read_lines
from trainonce.run.directory import RunDirectory
from trainonce.settings import JsonObject
from trainonce.subnets.finetune import FinetuneSettings
from trainonce.training.loop import train_supernet
from worth import loaded
from worth_ours import finetuned
from worth_table import DEVICES

CANDIDATES, SEEDS, MOST_TEST = 24, 2, 2000


def trained(data: DataSet, images: int, recipe: Recipe = RECIPES["quick"], *, seed: int = 0) -> MobileNetV3:
    """A supernet in the geometry `light` by a recipe, of so many images in all."""
    settings = MobileNetV3Settings.for_images(
        image_size=data.image_size, in_channels=data.channels, num_classes=data.num_classes, geometry="light"
    )
    net = MobileNetV3(settings, seed=seed)
    with TemporaryDirectory() as folder:
        scaled = recipe.scaled(images / len(data.train) / recipe.epochs)
        train_supernet(net, scaled, data, RunDirectory(Path(folder) / "run"), seed=seed)
    return net.eval()


class Scored(NamedTuple):
    """A network's loss and top-1 in percent on validate, and its top-1 on test."""

    loss: float
    top1: float
    test_top1: float


class Best(NamedTuple):
    """The best candidate of a size: as it comes out, and fine-tuned in half of the time and in all of it."""

    size: int
    before: Scored
    half: Scored
    whole: Scored


def _no_worse(before: Scored, after: Scored) -> Scored:
    return min(before, after, key=lambda one: one.loss)


def _by_loss_before(sizes: Sequence[Best]) -> Scored:
    best = min(sizes, key=lambda one: one.before.loss)
    return _no_worse(best.before, best.whole)


def _largest(sizes: Sequence[Best]) -> Scored:
    best = max(sizes, key=lambda one: one.size)
    return _no_worse(best.before, best.whole)


def _by_loss_after(sizes: Sequence[Best]) -> Scored:
    return min((_no_worse(one.before, one.half) for one in sizes), key=lambda one: one.loss)


RULES: dict[str, Callable[[Sequence[Best]], Scored]] = {
    "the size of least loss before, in all the time": _by_loss_before,
    "whole images, in all the time": _largest,
    "each size in half of the time, then the one of least loss": _by_loss_after,
}


def compare(net: MobileNetV3, data: DataSet, seconds: float) -> list[JsonObject]:
    """For each device and size of images the best candidate, before and after fine-tuning."""
    settings = EvaluateSettings(calibration_images=400)
    validate, test = Evaluator(data, "validate", settings), Evaluator(data, "test", settings)
    most, found = net.cost_of(net.space.largest()).macs, list[JsonObject]()
    for device in DEVICES:
        [archs] = draw_candidates(net.cost, [device * most], CANDIDATES, seed=0)
        for size in sorted({arch["resolution"] for arch in archs})[-2:]:
            scores = {arch: validate(net, arch) for arch in archs if arch["resolution"] == size}
            best = min(scores, key=lambda arch: scores[arch].loss)
            network, before = validate.recalibrated(net, best), scores[best]
            for share in (0.5, 1.0):
                tuned, said = list[Any](), ""
                for seed in range(SEEDS):
                    how = FinetuneSettings.by("sgd", epochs=1, label_smoothing=0.1, seed=seed)
                    result = finetuned(network, before.top1, validate, share * seconds, how, always=True)
                    loss = result.about.get("loss_after", before.loss)
                    tuned.append([loss, result.validate, test.score(result.network).top1])
                    said = result.about["finetuned"]
                found.append(
                    {
                        "device": device,
                        "size": size,
                        "macs": net.cost_of(best).macs,
                        "seconds": share * seconds,
                        "before": [before.loss, before.top1, test(net, best).top1],
                        "tuned": tuned,
                        "said": said,
                    }
                )
    return found


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each rule, a column for each set, length of training and time, and the mean over these."""
    found: dict[str, dict[str, list[float]]] = {}
    for (data, images, _), device in groupby(lines, lambda line: (line["data"], line["images"], line["device"])):
        halves = [list(pair) for _, pair in groupby(device, lambda line: line["size"])]
        name = f"{data}, {images:,}, {halves[0][-1]['seconds']:g} s"
        column = found.setdefault(name, {rule: [] for rule in RULES})
        for seed in range(len(halves[0][0]["tuned"])):
            sizes = [
                Best(
                    half["size"], *(Scored(*one) for one in (half["before"], half["tuned"][seed], all_["tuned"][seed]))
                )
                for half, all_ in halves
            ]
            for rule, handed_over in RULES.items():
                column[rule].append(handed_over(sizes).test_top1)
    rows = [f"| rule | {' | '.join(found)} | mean |", "|---" * (len(found) + 2) + "|"]
    for rule in RULES:
        means = [statistics.fmean(column[rule]) for column in found.values()]
        rows.append(f"| {rule} | {' | '.join(f'{one:.2f}' for one in (*means, statistics.fmean(means)))} |")
    return "\n".join(rows)


def options(
    arguments: Sequence[str] | None, about: str | None, *, images: int, seconds: float, out: str
) -> argparse.Namespace:
    """What was asked of a benchmark that trains a supernet of each set and fine-tunes subnets of it."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--images", type=int, default=images, help="trained, all epochs together")
    parser.add_argument("--seconds", type=float, default=seconds, help="of fine-tuning")
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each set, and print the table of all that the file holds."""
    asked = options(arguments, __doc__, images=70_000, seconds=10.0, out="worth_sizes.jsonl")
    torch.set_num_threads(1)
    print(machine())
    for name_or_path in asked.sets:
        name, data = loaded(name_or_path, 5000)
        data = replace(data, test=data.test.drawn(MOST_TEST, seed=0))
        net = trained(data, asked.images)
        if len(net.space.by_image_size()) == 1:
            print(f"{name}: of {data.image_size} pixels there are no smaller images to choose from")
            continue
        for line in compare(net, data.varied_by(RECIPES["quick"]), asked.seconds):
            append_line(asked.out, {"data": name, "images": asked.images} | line)
    if lines := list(read_lines(asked.out)):
        print(table(lines))


if __name__ == "__main__":
    main()
