"""The runs of docs/preregistration.md on a GPU: many beside each other, in calls of some minutes each.

    python benchmarks/paper_gpu.py cifar100 cifar10:rss,ps solo --out studies [--workers 16] [--minutes 9]
    python benchmarks/paper_gpu.py --list

A step of these small networks is hundreds of launches that leave most of a GPU idle, so one run alone is slow there and
sixteen take hardly longer. All runs of the studies named, in their order, are one queue that `--workers` processes work
through, of some arms alone where a study names them after a colon; what an earlier name has taken is not taken again.
Each study gets a directory under `--out` like one of `trainonce study`, and `trainonce conclude` reads it.

First the GPU is held against the CPU: losses and gradients of some subnets, and 200 steps of one recipe, from the same
weights on the same images, without dropout and augmentation, whose draws differ between devices. After `--minutes` the
call ends; the same call goes on, with each run from its last checkpoint. `--miniature` does the same on 256 images of
the digits in a tenth of the length, on any device. NVIDIA's multi-process service, where it runs, lets kernels of
several processes overlap.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainonce.data import DataSet, load_dataset
from trainonce.data.augment import normalise
from trainonce.errors import UserError
from trainonce.files import write_atomic
from trainonce.lab.studies.built_in import STUDIES
from trainonce.lab.studies.run_study import RunResult, StudyDirectory, StudyRunner
from trainonce.lab.studies.study import Study, StudyRun, StudySetup
from trainonce.lab.studies.summary import write_conclusion
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.parallel.fan_out import fan_out
from trainonce.recipes import RECIPES
from trainonce.records import to_json
from trainonce.run.directory import RunDirectory, provenance
from trainonce.space import derived_rng
from trainonce.training.loop import train_supernet
from trainonce.training.settings import Progress, TrainSettings

SUBNETS, AGREEMENT_STEPS = 16, 200
SAME_LOSS, SAME_GRADIENT, WORST_GRADIENT = 1e-4, 1e-2, 0.1
"""How far losses and gradients at the same weights may differ, as shares: float32 with one sum in another order."""
ALIKE = 0.25
"""How far the mean losses of a short training may differ, as a share. Rounding alone grows some twentyfold a step at
first: weights moved by 1e-7, or other kernels on the same CPU, change the fifth loss by 1%, the mean of 200 by 4%."""
SAVE_EVERY_S = 30.0
MINIATURE_IMAGES, MINIATURE_SCALE = 256, 0.1
TUNED = {"rss": 3.0, "ps": 8.0}
"""Factors on the published rates that run 1 found on MNIST."""
PAPERS_ARMS = ("rss-short", "rss", "ps", "ps-released")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A study of docs/preregistration.md: a design on a number of images."""

    number: str
    """What that page calls it."""
    design: str
    data: str
    train_images: int | None = 1000
    arms: tuple[str, ...] = ()
    """Of the design's, all where none is named."""
    scale: float = 1.0
    seeds: tuple[int, ...] = (0, 1, 2)
    per_bucket: int | None = None
    tuned: bool = False

    def study(self, data: DataSet) -> Study:
        """The study on these images."""
        setup = StudySetup(
            image_size=data.image_size,
            channels=data.channels,
            classes=data.num_classes,
            train_images=len(data.train),
            scale=self.scale,
            seeds=self.seeds,
            rates=TUNED if self.tuned else {},
        )
        study = STUDIES[self.design].study(setup)
        if self.per_bucket is not None:
            study = study.model_copy(
                update={"evaluate": study.evaluate.model_copy(update={"per_bucket": self.per_bucket})}
            )
        if not self.arms:
            return study
        arms = tuple(arm for arm in study.arms if arm.name in self.arms)
        assert len(arms) == len(self.arms), f"{self.design} has no such arms"
        return study.model_copy(update={"arms": arms, "runs": tuple(run for run in study.runs if run.arm in self.arms)})


def paper(number: str, data: str, images: int | None = 1000, **fields: Any) -> Planned:
    """The paper's comparison, at tuned rates."""
    return Planned(
        number=number, design="baseline", data=data, train_images=images, tuned=True, per_bucket=10, **fields
    )


RIVALS = ("rss", "ps")
PLANNED: dict[str, Planned] = {
    "mnist": paper("2", "mnist"),
    "cifar10": paper("4", "cifar10"),
    "solo": Planned(number="5", design="solo", data="mnist"),
    "dose": Planned(number="5", design="dose", data="mnist"),
    "fashion-mnist": paper("7", "fashion-mnist"),
    "cifar100": paper("7", "cifar100", 2500, arms=("rss", "rss-short", "ps")),
    **{f"length-{scale:g}": paper("6", "mnist", arms=RIVALS, scale=scale) for scale in (0.03, 0.1, 0.3)},
    **{f"images-{images}": paper("6", "mnist", images, arms=RIVALS) for images in (500, 2500)},
    "factorial": Planned(number="8", design="factorial", data="mnist", per_bucket=10),
    "mnist-again": paper("8", "mnist", arms=("rss", "stratified", "ps"), seeds=tuple(range(3, 11))),
    "full": Planned(number="3", design="baseline", data="cifar100", train_images=None, arms=PAPERS_ARMS, per_bucket=25),
}
"""Every study by name. `full` is the paper itself: some two hours of a GPU for a run of `ps`."""
FIRST = ("ps", "rss", "rss-short", "stratified")
"""Arms that are run first of what is taken of a study: the longest of the main comparison, then what goes with it."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far losses and gradients of the same subnets on the same images, and a short training, differ by device."""

    loss: float
    """Largest difference of a subnet's loss, as a share."""
    gradient: float
    """Median, over subnets, of the norm of the gradients' difference over that of the gradient."""
    worst_gradient: float
    """The largest of these."""
    means: tuple[float, float]
    """Mean loss over all steps of a short training on either device."""

    @property
    def holds(self) -> bool:
        """Whether rounding explains all of it."""
        one, other = self.means
        exact = self.loss <= SAME_LOSS and self.gradient <= SAME_GRADIENT and self.worst_gradient <= WORST_GRADIENT
        return exact and abs(one - other) <= ALIKE * one


def settings_for(data: DataSet) -> MobileNetV3Settings:
    """The paper's network for these images."""
    return MobileNetV3Settings.for_images(
        image_size=data.image_size, in_channels=data.channels, num_classes=data.num_classes
    )


def losses_on(device: str, data: DataSet, steps: int, *, seed: int = 0) -> list[float]:
    """The loss of every step of a short training of random subnets, new each step."""
    recipe = RECIPES["spos"]
    per_epoch = recipe.steps_per_epoch(len(data.train))
    recipe = recipe.scaled(steps / per_epoch / recipe.epochs)
    net = MobileNetV3(settings_for(data).model_copy(update={"dropout": 0.0}), seed=seed)
    losses: list[float] = []

    def note(at: Progress) -> None:
        losses.append(at.loss)

    with tempfile.TemporaryDirectory(prefix="trainonce-agreement-") as folder:
        settings = TrainSettings(device=device, log_every=1, checkpoint_every_s=1e9)
        plain = replace(data, augmentation=())
        train_supernet(net, recipe, plain, RunDirectory(folder), seed=0, settings=settings, on_progress=note)
    return losses


def gradients_on(device: str, data: DataSet, *, seed: int = 0) -> list[tuple[float, Tensor]]:
    """Loss and gradient, on the CPU, of the smallest, the largest and random subnets at their first weights."""
    net = MobileNetV3(settings_for(data).model_copy(update={"dropout": 0.0}), seed=seed).to(device).train()
    rng = derived_rng(0, "agreement")
    archs = [net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(SUBNETS - 2))]
    split = data.train.take(np.arange(64)).to(device)
    x_BCHW = normalise(split.images, mean=data.mean, std=data.std).contiguous(memory_format=torch.channels_last)
    found = []
    for arch in archs:
        net.zero_grad()
        loss = F.cross_entropy(net(x_BCHW, arch), split.labels)
        torch.autograd.backward(loss)
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
        found.append((float(loss.detach()), torch.cat([g.flatten() for g in gradient]).cpu()))
    return found


def agreement(data: DataSet, device: str, *, seed: int = 0, steps: int = AGREEMENT_STEPS) -> Agreement:
    """Hold a device against the CPU; another seed of the device's weights shows that this can fail."""
    pairs = list(zip(gradients_on("cpu", data), gradients_on(device, data, seed=seed), strict=True))
    apart = [float((other - one).norm() / one.norm()) for (_, one), (_, other) in pairs]
    runs = losses_on("cpu", data, steps), losses_on(device, data, steps, seed=seed)
    return Agreement(
        loss=max(abs(one - other) / one for (one, _), (other, _) in pairs),
        gradient=statistics.median(apart),
        worst_gradient=max(apart),
        means=(statistics.fmean(runs[0]), statistics.fmean(runs[1])),
    )


def check_agreement(data: DataSet, device: str, out: Path) -> None:
    """Hold the device against the CPU, once a directory. Raises `UserError` where they do not train alike."""
    file = out / "agreement.json"
    if file.exists():
        return
    found = agreement(data, device)
    print(
        f"CPU and {device}: losses of {SUBNETS} subnets differ by at most {found.loss:.1e}, their gradients by "
        f"{found.gradient:.1e} (median) to {found.worst_gradient:.1e}; {AGREEMENT_STEPS} steps have a mean loss of "
        f"{found.means[0]:.3f} and {found.means[1]:.3f}",
        flush=True,
    )
    if not found.holds:
        raise UserError(f"{device} does not train as the CPU does: nothing was run")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(file, to_json(asdict(found) | {"device": device}))


@dataclass(frozen=True)
class Task:
    """A run of a study of the queue."""

    study: str
    run: StudyRun

    def __str__(self) -> str:
        return f"{self.study}: {self.run.name}"


@dataclass(frozen=True)
class Doer:
    """Makes the function that does any run of the queue, as `fan_out` takes it; images are loaded when they are met."""

    runners: Mapping[str, StudyRunner]

    def __call__(self) -> Callable[[Task], RunResult | None]:
        """The function from a run to its result."""
        torch.backends.cudnn.allow_tf32 = False  # float32 as on the CPU; what limits these steps is elsewhere
        ready: dict[str, Callable[[StudyRun], RunResult | None]] = {}

        def do(task: Task) -> RunResult | None:
            if task.study not in ready:
                ready[task.study] = self.runners[task.study]()
            return ready[task.study](task.run)

        return do


@dataclass
class Queue:
    """All runs of some studies that are not recorded yet."""

    out: Path
    device: str
    workers: int
    data_dir: Path | None
    directories: dict[str, StudyDirectory] = field(default_factory=dict)
    runners: dict[str, StudyRunner] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)

    def add(self, name: str, study: Study, data: DataSet, arms: Collection[str]) -> None:
        """Put what is missing of a study last in the queue: of these arms, or where none are named of all.

        Raises `UserError` where its directory is another study's.
        """
        directory = self.directories[name] = StudyDirectory(self.out / name)
        directory.claim(study, data, provenance=provenance(self.device))
        directory.drop_unfinished()
        done = {line.run for line in directory.finished()}
        done |= {task.run.name for task in self.tasks if task.study == name}
        wanted = [run for run in study.runs if (not arms or run.arm in arms) and run.name not in done]
        self.tasks += [Task(name, run) for run in sorted(wanted, key=_place)]
        self.runners[name] = StudyRunner(
            root=directory.path.resolve(),
            plan=study.evaluate,
            source=data.source,
            fingerprint=data.fingerprint(),
            preparation=data.preparation,
            data=None,
            data_dir=self.data_dir,
            device=self.device,
            beside=self.workers,
            save_every_s=SAVE_EVERY_S,
        )

    def work(self, should_stop: Callable[[], bool]) -> bool:
        """Do the runs; gives whether all are recorded."""

        def record(task: Task, result: RunResult | None) -> None:
            if result is not None:
                self.directories[task.study].record(result)
                print(f"{task}: trained in {result.time.train_seconds:.0f} s", flush=True)

        return fan_out(Doer(self.runners), self.tasks, on_result=record, workers=self.workers, should_stop=should_stop)


def refuse_strange_arms(name: str, study: Study, arms: Collection[str]) -> None:
    """Raise `UserError` for an arm that a study has not."""
    known = [arm.name for arm in study.arms]
    if strange := sorted(set(arms) - set(known)):
        raise UserError(f"{name} has no arm {', '.join(strange)}; it has {', '.join(known)}")


def _place(run: StudyRun) -> int:
    return FIRST.index(run.arm) if run.arm in FIRST else len(FIRST)


def options(words: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY[:ARM,...]", help=", ".join(PLANNED))
    parser.add_argument("--out", type=Path, default=Path("studies"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--list", action="store_true", help="say what each study is and end")
    parser.add_argument("--miniature", action="store_true")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run what the time allows; 0 when all runs are done, 3 when the same call is to go on."""
    given = options(words)
    if given.list:
        for name, planned in PLANNED.items():
            print(
                f"{name:14} run {planned.number}: {planned.design} on {planned.train_images or 'all'} of {planned.data}"
            )
        return 0
    parts = [
        (name, arms.split(",") if arms else []) for name, _, arms in (word.partition(":") for word in given.studies)
    ]
    if not parts or not {name for name, _ in parts} <= set(PLANNED):
        raise UserError(f"name one or more of {', '.join(PLANNED)}")
    ends = time.monotonic() + 60 * given.minutes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.miniature:
        raise UserError("there is no CUDA device here: --miniature shows that it works")
    torch.set_num_threads(1)  # two that wait for each other stand still on a busy machine
    torch.backends.cudnn.allow_tf32 = False
    asked: list[tuple[str, Study, DataSet, list[str]]] = []
    for name, arms in parts:
        planned = PLANNED[name]
        if given.miniature:
            planned = replace(
                planned, data="digits", train_images=MINIATURE_IMAGES, scale=MINIATURE_SCALE, per_bucket=1
            )
        data = load_dataset(planned.data, data_dir=given.data_dir, train_images=planned.train_images)
        asked.append((name, planned.study(data), data, arms))
        refuse_strange_arms(name, asked[-1][1], arms)
    runs = {name: len(study.runs) for name, study, *_ in asked}
    queue = Queue(given.out, device, given.workers, given.data_dir)
    for name, study, data, arms in asked:
        check_agreement(data, device, given.out)
        queue.add(name, study, data, arms)
    torch.set_num_threads(given.workers)  # which the workers share
    complete = queue.work(lambda: time.monotonic() > ends)
    for name, directory in queue.directories.items():
        done = len(directory.finished())
        print(f"{name}: {done} of {runs[name]} runs are done")
        if done:
            print(write_conclusion(directory).sentence)
    print("all runs are done" if complete else "the same call goes on")
    return 0 if complete else 3


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"paper_gpu: {error}")
