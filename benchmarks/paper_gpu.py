"""The paper's comparison at full length and full size, on a GPU, in calls of some minutes each.

    python benchmarks/paper_gpu.py cifar100 --out runs/paper-gpu [--minutes 9] [--seeds 3]

First the GPU is held against the CPU: 200 steps of one recipe from the same weights on the same images, without
dropout and augmentation, whose draws differ between devices. Then RSS-Short, RSS, Progressive Shrinking (repaired) and
as released are trained as `trainonce study baseline` trains them, a seed after the other. After `--minutes` what is
under way is saved; the same call goes on. What is small (study.json, results.jsonl, times.jsonl, conclusion.json,
agreement.json) lies in `--out` beside the runs. `--miniature` does the same on 512 images in a 25th of the length, on
any device.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainonce.data import DATASET_NAMES, DataSet, load_dataset
from trainonce.errors import UserError
from trainonce.files import write_atomic
from trainonce.lab.studies.built_in import STUDIES
from trainonce.lab.studies.run_study import StudyDirectory, run_study
from trainonce.lab.studies.study import Study, StudySetup
from trainonce.lab.studies.summary import write_conclusion
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES
from trainonce.records import to_json
from trainonce.run.directory import RunDirectory, provenance
from trainonce.training.loop import Progress, TrainSettings, train_supernet

ARMS = ("rss-short", "rss", "ps", "ps-released")
"""The paper's, in the order of running."""
PER_BUCKET = 25
AGREEMENT_STEPS, CLOSE_STEPS = 200, 10
CLOSE, ALIKE = 0.01, 0.05
"""How far losses may differ, as a share: each of the first steps; their mean over all, when rounding has grown."""
SAVE_EVERY_S = 60.0
MINIATURE_IMAGES, MINIATURE_SCALE = 512, 0.04


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Losses of the same steps on two devices, and whether they are the same training."""

    steps: int
    first: float
    """Largest difference of a loss in the first steps, as a share of it."""
    mean: float
    """Difference of the mean losses over all steps, as a share."""

    @property
    def holds(self) -> bool:
        """Whether both lie within what rounding explains."""
        return self.first <= CLOSE and self.mean <= ALIKE


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


def agreement(one: list[float], other: list[float]) -> Agreement:
    """How far two trainings' losses lie apart."""
    shares = [abs(a - b) / abs(a) for a, b in zip(one[:CLOSE_STEPS], other, strict=False)]
    means = statistics.fmean(one), statistics.fmean(other)
    return Agreement(steps=len(one), first=max(shares), mean=abs(means[0] - means[1]) / abs(means[0]))


def planned(data: DataSet, *, seeds: int, scale: float) -> Study:
    """The `baseline` study's arms of the paper, at its learning rates."""
    setup = StudySetup(
        image_size=data.image_size,
        channels=data.channels,
        classes=data.num_classes,
        train_images=len(data.train),
        scale=scale,
        seeds=tuple(range(seeds)),
    )
    study = STUDIES["baseline"].study(setup)
    order = {arm: place for place, arm in enumerate(ARMS)}
    runs = sorted((run for run in study.runs if run.arm in order), key=lambda run: (run.seed, order[run.arm]))
    arms = sorted((arm for arm in study.arms if arm.name in order), key=lambda arm: order[arm.name])
    evaluate = study.evaluate.model_copy(update={"per_bucket": PER_BUCKET if scale == 1 else 1})
    return study.model_copy(update={"arms": tuple(arms), "runs": tuple(runs), "evaluate": evaluate})


def check_agreement(data: DataSet, device: str, out: Path) -> None:
    """Hold the device against the CPU, once a directory. Raises `UserError` where they do not train alike."""
    file = out / "agreement.json"
    if file.exists():
        return
    found = agreement(losses_on("cpu", data, AGREEMENT_STEPS), losses_on(device, data, AGREEMENT_STEPS))
    print(
        f"{found.steps} steps on the CPU and on {device}: losses differ by at most {found.first:.1e} in the first "
        f"{CLOSE_STEPS}, their means by {found.mean:.1e}"
    )
    if not found.holds:
        raise UserError(f"{device} does not train as the CPU does (limits: {CLOSE:g} and {ALIKE:g}): nothing was run")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(file, to_json({"steps": found.steps, "first": found.first, "mean": found.mean, "device": device}))


def main() -> int:
    """Run what the time allows; 0 when all runs are done, 3 when the same call is to go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=DATASET_NAMES, nargs="?", default="cifar100")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--miniature", action="store_true")
    given = parser.parse_args()
    ends = time.monotonic() + 60 * given.minutes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.miniature:
        raise UserError("there is no CUDA device here: --miniature shows that it works")
    data = load_dataset(given.data, data_dir=given.data_dir, train_images=MINIATURE_IMAGES if given.miniature else None)
    check_agreement(data, device, given.out)
    study = planned(data, seeds=given.seeds, scale=MINIATURE_SCALE if given.miniature else 1.0)
    directory = StudyDirectory(given.out)
    with directory.lock():
        directory.claim(study, data, provenance=provenance(device))
        complete = run_study(
            study,
            directory,
            data,
            data_dir=given.data_dir,
            device=device,
            save_every_s=SAVE_EVERY_S,
            on_run=lambda line: print(f"{line.run}: trained in {line.train_seconds:.0f} s", flush=True),
            should_stop=lambda: time.monotonic() > ends,
        )
    done = len(directory.finished())
    if done:
        print(write_conclusion(directory).sentence)
    print(f"{done} of {len(study.runs)} runs are done" + ("" if complete else "; the same call goes on"))
    return 0 if complete else 3


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"paper_gpu: {error}")
