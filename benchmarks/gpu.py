"""What a GPU makes of it: training and evaluating at the paper's size, with CUDA graphs and without, in one call.

    python benchmarks/gpu.py [--parts population layouts] [--epochs 2] [--images 4096] [--batches 64 1024]

Everything is the real thing on random images: `train_supernet` for a few epochs of `--images`, each epoch timed, and
`Evaluator` for a few subnets (2,000 images to calibrate on, 10,000 to score). RSS's 590 and 180 epochs of 40,000 images
and 600 subnets are extrapolated. Rivals train the same subnets on the same images, so their epochs are compared one by
one. An epoch at the start, which warms up and captures, is timed by itself. Without a GPU the same runs on the CPU in
miniature, which shows that it works and measures nothing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common import machine, middle, random_subnets, ratios, side_by_side, timed
from trainonce.data import DataSet, Split
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.nn.lending import Lent
from trainonce.nn.precision import Precision, logits_in
from trainonce.parallel.distributed import BatchShard
from trainonce.recipes import RECIPES, Colour, Crop, Flip, Recipe
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture
from trainonce.training.graphs import StepGraph, capture_for
from trainonce.training.loop import train_supernet
from trainonce.training.settings import Progress, TrainSettings

RSS_EPOCHS, SHORT_EPOCHS, POPULATION, PAPERS_IMAGES = 590, 180, 600, 40_000
EQUAL_STEPS = 20
"""Steps after which weights of replayed and eager runs are compared."""
PARTS = ("population", "layouts", "training", "equality")
GOALS = "goals on one H200: RSS under 3 minutes, RSS-Short under 1, 600 subnets under 1"
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
WAYS: tuple[tuple[Precision, bool], ...] = (("float32", False), ("float32", True), ("bfloat16", True))
"""Precisions, and whether float32 convolutions may round their factors (TF32)."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is."""

    device: str
    side: int
    geometry: str
    classes: int
    train: int
    calibrate: int
    score: int
    batches: tuple[int, ...]
    epochs: int
    subnets: int
    rounds: int
    steps: int

    def network(self) -> MobileNetV3:
        """The supernet, always with the same weights."""
        settings = MobileNetV3Settings.for_images(
            image_size=self.side, in_channels=3, num_classes=self.classes, geometry=self.geometry
        )
        return MobileNetV3(settings, seed=0).to(self.device)

    def data(self) -> DataSet:
        """Random images, augmented as small colour images are."""
        generator = torch.Generator().manual_seed(0)

        def split(count: int) -> Split:
            images = torch.randint(0, 256, (count, 3, self.side, self.side), dtype=torch.uint8, generator=generator)
            return Split(images, torch.randint(self.classes, (count,), generator=generator))

        return DataSet(
            name="random",
            class_names=tuple(map(str, range(self.classes))),
            mean=(0.5,) * 3,
            std=(0.3,) * 3,
            augmentation=(Crop(scale=(0.5, 1.0)), Flip(), Colour(brightness=0.1)),
            train=split(self.train),
            calibrate=split(self.calibrate),
            validate=split(self.score),
            test=split(2),
        )


MINIATURE = Size(
    device="cpu",
    side=8,
    geometry="tiny",
    classes=10,
    train=8,
    calibrate=16,
    score=16,
    batches=(8,),
    epochs=1,
    subnets=2,
    rounds=1,
    steps=1,
)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run came to: seconds of its first epoch and of each later one, memory in GiB, and its weights."""

    first: float
    epochs: list[float]
    memory: float
    weights: Tensor


def recipe_of(name: str, epochs: int, batch: int) -> Recipe:
    """A recipe for so many epochs, its learning rate scaled with the batch but small: random images teach nothing."""
    recipe = RECIPES[name]
    phases = tuple(p.model_copy(update={"epochs": p.epochs * epochs / recipe.epochs}) for p in recipe.phases)
    recipe = recipe.model_copy(update={"phases": phases}).with_batch_size(batch)  # not scaled: subnets are held as long
    phases = tuple(phase.model_copy(update={"lr": phase.lr / 10}) for phase in recipe.phases)
    return recipe.model_copy(update={"phases": phases})


def train(size: Size, data: DataSet, recipe: Recipe, *, graphs: bool, precision: Precision) -> Trained:
    """Train by a recipe and time its epochs, which each end with a line of metrics, for which the device is waited."""
    marks: list[float] = []

    def mark(_: Progress) -> None:
        marks.append(time.perf_counter())

    net = size.network()
    steps = recipe.steps_per_epoch(len(data.train))
    settings = TrainSettings(
        device=size.device, precision=precision, cuda_graphs=graphs, log_every=steps, checkpoint_every_s=1e9
    )
    if size.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        train_supernet(net, recipe, data, RunDirectory(Path(folder) / "run"), settings=settings, on_progress=mark)
    took = [end - begin for begin, end in zip([began, *marks], marks, strict=False)]
    memory = torch.cuda.max_memory_reserved() / 2**30 if size.device == "cuda" else 0.0
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    return Trained(first=took[0], epochs=took[1:], memory=memory, weights=weights)


def report_training(size: Size, data: DataSet, name: str) -> None:
    """Epochs of a recipe at each batch size and precision, replayed and eager; RSS's whole time at the paper's size."""
    whole = PAPERS_IMAGES / size.train / 60
    print(f"\n{name}: seconds for an epoch of {size.train} images; median (range) of {size.epochs} after the first\n")
    print(
        f"{'batch':>6} {'precision':<9} {'graphs':<6} {'first':>7} {'an epoch':>22} {'graphs against none':>20} "
        f"{f'{RSS_EPOCHS}, min':>9} {f'{SHORT_EPOCHS}, min':>9} {'GiB':>6}"
    )
    for batch in size.batches:
        recipe = recipe_of(name, size.epochs + 1, batch)
        for precision in PRECISIONS:
            eager, replayed = (train(size, data, recipe, graphs=g, precision=precision) for g in (False, True))
            for way, found in (("off", eager), ("on", replayed)):
                faster = middle(ratios(eager.epochs, found.epochs)) if found is replayed else ""
                short, long = (statistics.median(found.epochs) * whole * n for n in (SHORT_EPOCHS, RSS_EPOCHS))
                print(
                    f"{batch:>6} {precision:<9} {way:<6} {found.first:>7.2f} {middle(found.epochs, 3):>22} "
                    f"{faster:>20} {long:>9.2f} {short:>9.2f} {found.memory:>6.1f}",
                    flush=True,
                )


def report_equality(size: Size, data: DataSet) -> None:
    """How far a replayed run ends from an eager one, and an eager one from itself, over the way the weights went."""
    print(f"\ndistance of the weights after {EQUAL_STEPS} steps from those of an eager run, over the way they went\n")
    few = replace(data, train=data.train.take(np.arange(min(len(data.train), EQUAL_STEPS * size.batches[0]))))
    began = torch.cat([p.detach().flatten() for p in size.network().parameters()])
    print(f"{'recipe':<9} {'precision':<9} {'eager again':>12} {'replayed':>10}")
    for name in ("rss", "spos", "sandwich"):
        recipe = recipe_of(name, 1, size.batches[0])
        for precision in PRECISIONS:
            ways = (False, False, True)
            one, again, replayed = (train(size, few, recipe, graphs=g, precision=precision).weights for g in ways)
            way = (one - began).norm()
            distances = [float((other - one).norm() / way) for other in (again, replayed)]
            print(f"{name:<9} {precision:<9} {distances[0]:>12.1e} {distances[1]:>10.1e}", flush=True)


def captured_step(
    net: MobileNetV3, arch: Architecture, x_BCHW: Tensor, y_B: Tensor, precision: Precision
) -> Callable[[], object]:
    """Gradients of one subnet, replayed where they can be captured; the device is waited for."""

    def passes(x_BCHW: Tensor, y_B: Tensor) -> tuple[Tensor, Tensor]:
        logits_BK = logits_in(precision, net, x_BCHW, arch)
        loss = F.cross_entropy(logits_BK, y_B)
        torch.autograd.backward(loss)
        return loss.detach()[None], (logits_BK.argmax(1) == y_B).sum()

    capture = capture_for(net)
    graph = None if capture is None else StepGraph(net, Lent([]), BatchShard(0, len(y_B), len(y_B)), capture)
    generator = torch.Generator(x_BCHW.device)

    def step() -> float:
        net.zero_grad()
        found = passes(x_BCHW, y_B) if graph is None else graph.run(0, passes, x_BCHW, y_B, generator)
        return float(found[0])

    return step


def report_layouts(size: Size) -> None:
    """A captured step with images channels_last and not, in each precision: blocks keep the layout that they get."""
    print("\nforward and backward as one graph, by layout: ms of the median subnet, and times as fast channels_last\n")
    for batch in size.batches:
        x_BCHW = torch.randn(batch, 3, size.side, size.side, device=size.device)
        y_B = torch.zeros(batch, dtype=torch.long, device=size.device)
        layouts = {"NCHW": x_BCHW, "last": x_BCHW.contiguous(memory_format=torch.channels_last)}
        for precision, tf32 in WAYS:
            torch.backends.cudnn.allow_tf32 = tf32
            faster: list[float] = []
            took: dict[str, list[float]] = {name: [] for name in layouts}
            for arch in random_subnets(size.network(), size.subnets)[:3]:
                steps = {
                    name: captured_step(size.network().train(), arch, x, y_B, precision) for name, x in layouts.items()
                }
                found = side_by_side(steps, size.steps, warm_up=3)  # an eager one, one that captures, a replay
                faster.append(statistics.median(ratios(found["NCHW"], found["last"])))
                for name, seconds in found.items():
                    took[name].append(1000 * statistics.median(seconds))
            ms = ", ".join(f"{name} {statistics.median(found):.2f}" for name, found in took.items())
            print(f"batch {batch:>5} {precision:<9}{' TF32' if tf32 else '':<5}: {ms} ms; {middle(faster)}", flush=True)
        torch.backends.cudnn.allow_tf32 = True


def report_population(size: Size, data: DataSet) -> None:
    """Subnets calibrated and scored, by rounds."""
    net = size.network().eval()
    archs = sorted(random_subnets(net, size.subnets), key=str)
    settings = EvaluateSettings(calibration_images=size.calibrate, calibration_batch=min(200, size.calibrate))
    took = []
    for _ in range(size.rounds + 1):  # the first warms up
        evaluator = Evaluator(data, "validate", settings)  # which keeps nothing of a round before

        def population(evaluator: Evaluator = evaluator) -> None:
            for arch in archs:
                evaluator(net, arch)

        took.append(timed(population)[0])
    each = [seconds / len(archs) for seconds in took[1:]]
    print(
        f"\nevaluating: {size.calibrate} images to calibrate on, {size.score} to score; {len(archs)} random subnets\n"
    )
    print(
        f"seconds a subnet: {middle(each, 3)}; {POPULATION} subnets: {middle([POPULATION * s / 60 for s in each])} min"
    )


def gpu() -> str:
    """The card, its memory and the libraries."""
    cudnn = torch.backends.cudnn
    card = torch.cuda.get_device_properties(0)
    return (
        f"{card.name}, {card.total_memory / 2**30:.0f} GiB; CUDA {torch.version.cuda}, "
        f"cuDNN {cudnn.version()}, TF32 in convolutions: {cudnn.allow_tf32}"  # type: ignore[no-untyped-call]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of what is measured, in this order")
    parser.add_argument("--epochs", type=int, default=2, help="timed in each run, after the first")
    parser.add_argument("--images", type=int, default=4096, help="to train on")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 1024], help="images in a step")
    parser.add_argument("--subnets", type=int, default=8, help="of the population")
    parser.add_argument("--rounds", type=int, default=2, help="over the subnets")
    options = parser.parse_args()
    print(machine())
    if torch.cuda.is_available():
        print(f"{gpu()}\n{GOALS}")
        size = Size(
            device="cuda",
            side=32,
            geometry="paper",
            classes=100,
            train=options.images,
            calibrate=2_000,
            score=10_000,
            batches=tuple(options.batches),
            epochs=options.epochs,
            subnets=options.subnets,
            rounds=options.rounds,
            steps=10 * options.rounds,
        )
    else:
        print("There is no CUDA device here, so nothing is measured: what follows is a miniature that shows it works.")
        size = MINIATURE
    data = size.data().to(size.device)
    if "population" in options.parts:
        report_population(size, data)
    if "layouts" in options.parts:
        report_layouts(size)
    if "training" in options.parts:
        for name in ("rss", "spos"):
            report_training(size, data, name)
    if "equality" in options.parts:
        report_equality(size, data)


if __name__ == "__main__":
    main()
