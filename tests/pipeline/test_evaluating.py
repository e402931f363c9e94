"""Buckets that meet."""

from pathlib import Path

import pytest
from tests.support.command_line import trainonce

from trainonce.data import load_dataset
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.pipeline.evaluating import EvaluateProgress, evaluate
from trainonce.recipes import RECIPES
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet

FEW = ("--calibration-images", "20", "--device", "cpu", "--workers", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of few subnets: five blocks of two expand ratios each."""
    run = RunDirectory(tmp_path_factory.mktemp("evaluating") / "run")
    settings = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10, width_mult=0.25)
    settings = settings.model_copy(update={"depths": (1,), "kernel_sizes": (3,), "expand_ratios": (3, 4)})
    recipe = RECIPES["spos"].with_batch_size(256).scaled(1 / RECIPES["spos"].epochs)
    train_supernet(MobileNetV3(settings), recipe, load_dataset("digits"), run)
    return run.path


def macs_of(run: Path) -> list[int]:
    """Of every subnet."""
    net, _ = RunDirectory(run).load_supernet()
    found = sorted(net.cost_of(arch).macs for arch in net.space.architectures())
    assert len(found) == 2**5
    return found


def test_what_two_buckets_share_is_scored_and_counted_once(trained: Path) -> None:
    """All subnets in two buckets that meet at one of them."""
    macs = macs_of(trained)
    border = macs[len(macs) // 2]
    half = max(border - macs[0], macs[-1] - border) / 2
    told: list[EvaluateProgress] = []
    done = evaluate(
        trained,
        buckets=((border - half) / 1e6, (border + half) / 1e6),
        bucket_half_width=half / 1e6,
        per_bucket=100,
        calibration_images=20,
        device="cpu",
        workers=1,
        on_progress=told.append,
    )
    assert done.finished
    assert sorted(line.macs for line in done.lines) == macs
    assert len(done.plan.population) == len(macs)
    assert [(at.done, at.total) for at in told] == [(number, len(macs)) for number in range(1, len(macs) + 1)]
    assert [one.count for one in done.summaries] == [
        sum(one <= border for one in macs),
        sum(one >= border for one in macs),
    ]


def test_spread_buckets_that_overlap_are_refused(trained: Path) -> None:
    trainonce("evaluate", trained, "--bucket-half-width", "0.5", *FEW).refused(
        r"6 buckets .* overlap .* take at most 0\.\d+, or name fewer with --buckets"
    )
