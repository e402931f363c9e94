"""What recipes come to on few images in many passes.

    python benchmarks/few_images.py SET --train-images 500 --passes 400 --recipe quick benchmarks/levers/unmixed.toml

Each recipe trains the geometry `light` on so many images of SET, in so many passes. For devices of 25, 50 and 100% of
the largest MACs nine subnets are drawn, the same for all, and the one of least loss on validate is the device's. Each
is a line of `--out`, with loss and top-1 on validate, of which all images are used, and top-1 on test. It ends with a
table of what the file holds, means over the devices and seeds; without SET there is the table alone. No fine-tuning.
Run again it does what is missing.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common import machine
from trainonce.data import DataSet, load_dataset
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.evaluation.population import draw_candidates
from trainonce.recipes import Recipe, load_recipe
from trainonce.records import append_line, read_lines
from worth_ours import recipe_name, refuse_one_name
from worth_sizes import trained
from worth_table import DEVICES

CANDIDATES = 9
FIGURES = ("validate", "loss", "test", "seconds")
OF_A_JOB = ("data", "images", "passes", "recipe", "seed")
"""What names one training in the file."""

Job = tuple[object, ...]
"""The values of `OF_A_JOB`."""


def measure(data: DataSet, passes: float, recipe: Recipe, seed: int) -> list[dict[str, Any]]:
    """A line for each device."""
    began = time.process_time()
    net = trained(data, round(passes * len(data.train)), recipe, seed=seed)
    seconds = time.process_time() - began
    data = data.varied_by(recipe)
    settings = EvaluateSettings(calibration_images=400)
    validate, test = Evaluator(data, "validate", settings), Evaluator(data, "test", settings)
    most, found = net.cost_of(net.space.largest()).macs, list[dict[str, Any]]()
    for device in DEVICES:
        [archs] = draw_candidates(net.cost, [device * most], CANDIDATES, seed=0)
        score, best = min(((validate(net, arch), arch) for arch in archs), key=lambda one: one[0].loss)
        line = {"device": device, "macs": net.cost_of(best).macs, "loss": score.loss, "validate": score.top1}
        found.append(line | {"test": test(net, best).top1, "seconds": round(seconds, 1)})
    return found


def done(lines: Sequence[dict[str, Any]]) -> dict[Job, list[dict[str, Any]]]:
    """The jobs of which every device has a line, and these: of several of a device the last."""
    found: dict[Job, dict[float, dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(tuple(line[name] for name in OF_A_JOB), {})[line["device"]] = line
    return {job: list(of_job.values()) for job, of_job in found.items() if of_job.keys() >= set(DEVICES)}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each set, number of images, passes and recipe, over the seeds that are done."""
    found: dict[Job, list[dict[str, Any]]] = {}
    for job, of_job in done(lines).items():
        found.setdefault(job[:-1], []).extend(of_job)
    rows = ["| set | images | passes | recipe | seeds | validate | loss | test | CPU seconds |", "|---" * 9 + "|"]
    for (data, images, passes, recipe), of in found.items():
        validate, loss, test, took = (statistics.fmean(one[name] for one in of) for name in FIGURES)
        seeds = len({line["seed"] for line in of})
        figures = f"{validate:.1f} | {loss:.3f} | {test:.1f} | {took:.0f}"
        rows.append(f"| {data} | {images:,} | {passes:g} | {recipe} | {seeds} | {figures} |")
    return "\n".join(rows)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", metavar="SET")
    parser.add_argument("--train-images", type=int, nargs="+", default=[500, 1250])
    parser.add_argument("--passes", type=float, nargs="+", default=[160.0, 400.0])
    parser.add_argument("--recipe", nargs="+", default=["quick"], help="names or TOML files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("few_images.jsonl"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the file does not hold yet, and print the table."""
    asked = options(arguments)
    refuse_one_name(asked.recipe)
    torch.set_num_threads(1)
    print(machine())
    known = done(read_lines(asked.out))
    jobs = [(n, p, r, s) for s in asked.seeds for n in asked.train_images for p in asked.passes for r in asked.recipe]
    for images, passes, recipe, seed in jobs if asked.set else ():
        data = load_dataset(asked.set, train_images=images)
        job = (data.source.name, images, passes, recipe_name(recipe), seed)
        if job not in known:
            for line in measure(data, passes, load_recipe(recipe), seed):
                append_line(asked.out, dict(zip(OF_A_JOB, job, strict=True)) | line)
    print(table(list(read_lines(asked.out))))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
