"""By what a device's subnet is best chosen: by top-1 or by loss, on so many validate images.

    python benchmarks/choosing.py SET … [--train-images 5000] [--images 200000] [--out choosing.jsonl]

A SET is a name that `load_dataset` knows, or a folder of images, with some thousand validate and test images. A
supernet of `light` is trained by `quick` on so many images in all. For devices of 25, 50 and 100% of its MACs twenty
candidates are drawn, as `fit` draws them, and scored on up to 4,000 images of both splits. Then validate images are
drawn, 300 times so many, and the best of the twenty is taken by its top-1 on those (of equals that of fewest MACs), or
by its loss. Each is a line of `--out`: the mean top-1 on test of what was taken, of all candidates, and of the best on
test, which nobody can know. It ends with a table of what the file holds; without SET there is the table alone. A set
of which the file has lines is not done again.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from common import machine
from trainonce.data import DataSet, Split, load_dataset
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, logits_of
from trainonce.evaluation.population import draw_candidates
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES
from trainonce.records import append_line, read_lines
from worth_sizes import trained
from worth_table import DEVICES

CANDIDATES = 20
MOST_IMAGES = 4000
"""Of a split, so that sixty subnets are scored in minutes."""
VALIDATE_IMAGES = (100, 250, 500, 1000)
DRAWS = 300


class Answers(NamedTuple):
    """What a device's candidates say of each image of a split: [candidates, images]."""

    loss_CN: Tensor
    right_CN: Tensor


def answers(net: MobileNetV3, data: DataSet) -> list[tuple[Answers, Answers]]:
    """For each device what its candidates, by rising MACs, say on validate and on test."""
    evaluator = Evaluator(data, "validate", EvaluateSettings(calibration_images=400))
    most, found = net.cost_of(net.space.largest()).macs, []
    for archs in draw_candidates(net.cost, [device * most for device in DEVICES], CANDIDATES, seed=0):
        by_macs = sorted(archs, key=lambda arch: net.cost_of(arch).macs)
        networks = [evaluator.recalibrated(net, arch) for arch in by_macs]
        logits = [[_logits(one, split, data) for one in networks] for split in (data.validate, data.test)]
        validate, test = (
            Answers(
                torch.stack([functional.cross_entropy(of, split.labels, reduction="none") for of in those]),
                torch.stack([(of.argmax(1) == split.labels).float() for of in those]),
            )
            for those, split in zip(logits, (data.validate, data.test), strict=True)
        )
        found.append((validate, test))
    return found


def _logits(network: torch.nn.Module, split: Split, data: DataSet) -> Tensor:
    return torch.cat(list(logits_of(network, split, data)))


def chosen(validate: Answers, test: Answers, images: int, seed: int) -> dict[str, float]:
    """Mean top-1 on test, in percent, of what is taken by top-1 and by loss on so many validate images."""
    top1_C = 100 * test.right_CN.mean(1)
    generator = torch.Generator().manual_seed(seed)
    taken: dict[str, list[float]] = {"top1": [], "loss": []}
    for _ in range(DRAWS):
        seen = torch.randperm(validate.loss_CN.shape[1], generator=generator)[:images]
        taken["top1"].append(float(top1_C[_first_highest(validate.right_CN[:, seen].sum(1))]))
        taken["loss"].append(float(top1_C[validate.loss_CN[:, seen].mean(1).argmin()]))
    means = {by: statistics.fmean(of) for by, of in taken.items()}
    return means | {"any": float(top1_C.mean()), "most": float(top1_C.max())}


def _first_highest(right_C: Tensor) -> int:
    return int((right_C == right_C.max()).nonzero()[0])


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each set and number of validate images, means over the devices."""
    of: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in lines:
        of.setdefault((line["data"], line["validate_images"]), []).append(line)
    rows = ["| set | validate images | by top-1 | by loss | any | the best |", "|---" * 6 + "|"]
    for (data, images), those in of.items():
        figures = (f"{statistics.fmean(one[name] for one in those):.2f}" for name in ("top1", "loss", "any", "most"))
        rows.append(f"| {data} | {images:,} | {' | '.join(figures)} |")
    return "\n".join(rows)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--train-images", type=int, default=5000)
    parser.add_argument("--images", type=int, default=200_000, help="that the supernet is trained on, in all")
    parser.add_argument("--out", type=Path, default=Path("choosing.jsonl"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the file does not hold yet, and print the table."""
    asked = options(arguments)
    torch.set_num_threads(1)
    print(machine())
    known = {(line["data"], line["train_images"], line["images"]) for line in read_lines(asked.out)}
    for name_or_path in asked.sets:
        data = load_dataset(name_or_path, train_images=asked.train_images)
        job = (data.source.name, asked.train_images, asked.images)
        if job in known:
            continue
        data = replace(data, validate=_some(data.validate), test=_some(data.test))
        net = trained(data, asked.images)
        for device, (validate, test) in zip(DEVICES, answers(net, data.varied_by(RECIPES["quick"])), strict=True):
            for images in (images for images in VALIDATE_IMAGES if images <= len(data.validate)):
                of_job = dict(zip(("data", "train_images", "images"), job, strict=True))
                line = of_job | {"device": device, "validate_images": images, "seed": 0}
                append_line(asked.out, line | chosen(validate, test, images, seed=0))
    print(table(list(read_lines(asked.out))))


def _some(split: Split) -> Split:
    return split.drawn(min(MOST_IMAGES, len(split)), seed=0)


if __name__ == "__main__":
    main()
