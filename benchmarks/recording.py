"""What recording costs: the exposure in each step, and the looks at probes in each epoch; and what reading it costs.

    python benchmarks/recording.py [--steps 20] [--rounds 5] [--batch 64] [--looks 3] [--epochs 100] [--threads 2]
                                   [--lines 10000]

A round trains the paper's geometry for some steps, each of another random subnet, with recording and without, one after
the other; recording alone is timed too, since it drowns in the noise of the steps. Then looks at four probes, as
`trainonce train` has them, are timed against as many steps as 45,000 images give between two looks. Reading a
population and the metrics, each line held against its sum and every value checked, is timed beside `json.loads`.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch

from common import (
    CLASSES,
    SIDE,
    Trainer,
    machine,
    middle,
    paper_network,
    random_images,
    random_subnets,
    ratios,
    side_by_side,
    timed,
)
from trainonce.data import DataSet, Split
from trainonce.evaluation.evaluator import EvaluateSettings
from trainonce.lab.measures.forgetting import Prober, default_probes
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES
from trainonce.records import write_lines
from trainonce.run.directory import RunDirectory
from trainonce.run.exposure import Exposure
from trainonce.sampling import MacsSampler
from trainonce.training.settings import EpochEnd

TRAIN, HELD_OUT = 45_000, 2000


def images_like_cifar() -> DataSet:
    """Random images; those to train on, which are only counted, are one image many times."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        pixels = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.randint(0, CLASSES, (count,), generator=generator))

    train = Split(torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8).expand(TRAIN, -1, -1, -1), torch.zeros(TRAIN).long())
    return DataSet(
        name="random",
        class_names=tuple(map(str, range(CLASSES))),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augmentation=(),
        train=train,
        calibrate=split(HELD_OUT),
        validate=split(HELD_OUT),
        test=split(1),
    )


def measure_steps(net: MobileNetV3, *, steps: int, rounds: int, batch: int) -> float:
    """Print what recording a step costs; gives the seconds of a step."""
    trainer, subnets = Trainer(net, drop=True), random_subnets(net, steps)
    x_BCHW = random_images(batch, batch=batch, seed=0)[0]
    y_B = torch.arange(batch) % CLASSES
    by_macs = MacsSampler(net.cost)
    recorder = Exposure(net.space, by_macs.min_macs, by_macs.max_macs)

    def train(*, record: bool) -> None:
        for arch in subnets:
            trainer.step(lambda x, arch=arch: net(x, arch), x_BCHW, y_B)  # type: ignore[misc]
            if record:
                recorder.add([arch], [net.cost(arch).macs], 0.01)

    def record_only() -> None:
        for arch in subnets:
            recorder.add([arch], [net.cost(arch).macs], 0.01)

    rivals = {"without": lambda: train(record=False), "with": lambda: train(record=True), "alone": record_only}
    seconds = side_by_side(rivals, rounds)
    step = statistics.median(seconds["without"]) / steps
    alone = [100 * share for share in ratios(seconds["alone"], seconds["without"])]
    beside = [100 * (share - 1) for share in ratios(seconds["with"], seconds["without"])]
    print(f"a step: {1e3 * step:.1f} ms; recording it: {1e6 * statistics.median(seconds['alone']) / steps:.0f} µs")
    print(f"recording takes {middle(alone)} % of a step; side by side {middle(beside)} %")
    return step


def measure_looks(net: MobileNetV3, *, step: float, looks: int, epochs: int, batch: int) -> None:
    """Print what looking at probes costs of a run of so many epochs."""
    recipe = RECIPES["rss"].with_batch_size(batch)
    recipe = recipe.scaled(epochs / recipe.epochs)
    with tempfile.TemporaryDirectory() as scratch:
        probes = default_probes(net, 4, seed=0)
        prober = Prober(net, recipe, images_like_cifar(), RunDirectory(Path(scratch)), probes=probes)
        took = [timed(lambda: prober(EpochEnd(step=0, epoch=0, last=True)))[0] for _ in range(looks + 1)][1:]
    between = prober.every * (TRAIN // batch) * step
    shares = [100 * seconds / between for seconds in took]
    print(
        f"a look at {len(probes)} probes: {statistics.median(took):.2f} s, every {prober.every} of {epochs} epochs "
        f"of {between / prober.every:.0f} s: {middle(shares)} % of training"
    )


def measure_reading(net: MobileNetV3, *, lines: int, rounds: int) -> None:
    """Print how long reading a run's lines takes beside reading them as JSON, unchecked."""
    arch, calibration = net.space.largest(), EvaluateSettings().model_dump(exclude={"score_batch"})
    both = {"arch": str(arch), "macs": 12_345_678, "step": 70_400, "top1": 55.5, "loss": 1.2345678901}
    score = {"id": arch.id, "images": 10_000, "split": "validate", "calibration": calibration}
    stretch = {"phase": "rss", "epoch": 100.0, "lr": 0.0123, "passes": 400.0, "seconds": 8642.123456}
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDirectory(scratch)
        write_lines(run.population_file, (both | score | {"params": i} for i in range(lines)))
        write_lines(run.metrics_file, (both | stretch | {"step": i} for i in range(lines)))
        for path, read in ((run.population_file, run.population), (run.metrics_file, run.metrics)):
            texts = path.read_bytes().splitlines()
            rivals = {"ours": read, "json": lambda texts=texts: [json.loads(text) for text in texts]}
            seconds = side_by_side(rivals, rounds)
            beside = ratios(seconds["ours"], seconds["json"])
            print(f"reading {lines:,} lines of {path.name} takes {middle(beside)} times json.loads")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="training steps in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--looks", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100, help="of the run that is looked at")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lines", type=int, default=10_000, help="lines that are read")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())
    net = paper_network()
    measure_reading(net, lines=options.lines, rounds=options.rounds)
    step = measure_steps(net, steps=options.steps, rounds=options.rounds, batch=options.batch)
    measure_looks(net, step=step, looks=options.looks, epochs=options.epochs, batch=options.batch)


if __name__ == "__main__":
    main()
