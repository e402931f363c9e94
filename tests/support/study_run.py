"""Runs a tiny study with two workers, as a program that tests kill: `study_run.py FOLDER`."""

import signal
import sys
from pathlib import Path

import torch

from trainonce.data import load_dataset
from trainonce.lab.studies.run_study import StudyDirectory, run_study
from trainonce.lab.studies.study import Arm, Study, StudyRun, StudyScoring
from trainonce.models import MobileNetV3Settings
from trainonce.recipes import RECIPES

STEPS, BATCH = 24, 16


def tiny_study() -> Study:
    """Two arms, two seeds: four runs of 24 steps of 16 images, two subnets scored in each."""
    model = MobileNetV3Settings.for_images(
        image_size=8, in_channels=1, num_classes=10, width_mult=0.25, depths=(1, 2)
    ).model_dump(mode="json")
    epochs = STEPS / (1078 // BATCH)
    recipes = {n: RECIPES[n].with_batch_size(BATCH).scaled(epochs / RECIPES[n].epochs) for n in ("rss", "spos")}
    return Study(
        name="tiny",
        about="Two ways.",
        question="Which?",
        seeds=(0, 1),
        arms=tuple(Arm(name=name) for name in recipes),
        runs=tuple(
            StudyRun(name=f"{name}-seed{seed}", arm=name, seed=seed, recipe=recipe, model=model)
            for seed in (0, 1)
            for name, recipe in recipes.items()
        ),
        evaluate=StudyScoring(per_bucket=0, probes=("smallest", "largest"), calibration_images=50, split="validate"),
    )


def main(folder: Path) -> None:
    torch.set_num_threads(2)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    data, directory, study = load_dataset("digits"), StudyDirectory(folder), tiny_study()
    with directory.lock():
        directory.claim(study, data, provenance={})
        complete = run_study(study, directory, data, workers=2, save_every_s=0, should_stop=lambda: bool(asked))
    sys.exit(0 if complete else 3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
