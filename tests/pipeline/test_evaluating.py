"""Buckets that meet, and the command that `trainonce evaluate` ends with."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.command_line import trainonce

from trainonce.cli.evaluate import _say
from trainonce.data import load_dataset
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.pipeline.evaluating import EvaluateProgress, evaluate
from trainonce.recipes import RECIPES
from trainonce.run.directory import RunDirectory
from trainonce.search.resources import quantity
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


@pytest.mark.parametrize("larger", [1, 100, 1_000])
def test_the_next_command_is_one_that_works(trained: Path, capsys: pytest.CaptureFixture[str], larger: int) -> None:
    """Also where subnets have hundreds of millions of MACs."""
    done = evaluate(trained, per_bucket=2, calibration_images=20, device="cpu", workers=1)
    buckets = [replace(one, centre=one.centre * larger, half=one.half * larger) for one in done.plan.buckets]
    lines = [line.model_copy(update={"macs": line.macs * larger}) for line in done.lines]
    _say(replace(done, plan=replace(done.plan, buckets=buckets), lines=lines))
    words = shlex.split(" ".join(capsys.readouterr().err.split("Next: ")[1].split("\n")))
    assert words[:-1] == ["trainonce", "extract", str(trained), "--max-macs"]
    fitting = [line for line in lines if line.macs <= quantity("macs", words[-1])]
    assert len(lines) / 2 <= len(fitting) < len(lines)


def test_after_test_no_command_is_named_that_validate_scores_are_needed_for(trained: Path) -> None:
    said = trainonce("evaluate", trained, "--split", "test", "--per-bucket", "1", *FEW)
    assert said.code == 0, said.err
    assert "Next:" not in said.err
