"""Which scores a subnet is chosen by, and how it is calibrated: as it was scored last."""

from pathlib import Path

import pytest

from trainonce import pipeline
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import SubnetScore
from trainonce.subnets import read_subnet

BUCKETS = (0.3, 0.6)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    pipeline.train("digits", recipe="spos", epochs=1, batch_size=256, width=0.25, out=made.path, device="cpu")
    return made


def seed_of(line: SubnetScore) -> object:
    assert line.calibration is not None
    return line.calibration["seed"]


def test_what_was_scored_last_is_chosen_from(run: RunDirectory, tmp_path: Path) -> None:
    """Evaluated after a search, and searched after that: each time the newest scores count, with their calibration."""

    def evaluated(seed: int) -> None:
        pipeline.evaluate(
            run.path, buckets=BUCKETS, bucket_half_width=0.1, per_bucket=2, calibration_images=100, seed=seed
        )

    def taken() -> tuple[str, object]:
        pipeline.extract(run.path, max_macs=1.0, out=tmp_path / "subnet", device="cpu")
        described = read_subnet(tmp_path / "subnet")[1]
        assert described.recalibrated is not None
        return described.architecture, described.recalibrated["seed"]

    def best(lines: list[SubnetScore]) -> str:
        return min((line for line in lines if line.macs <= 1e6), key=lambda line: line.loss).arch

    evaluated(0)
    pipeline.search(run.path, max_macs=0.7, scores=2, device="cpu")
    first = run.population()
    assert taken() == (best([*first, *run.searched()]), 0)
    evaluated(1)
    assert taken() == (best(run.population()[len(first) :]), 1)
    pipeline.search(run.path, max_macs=0.8, scores=2, device="cpu")
    assert run.scores()[-1] == run.searched()[-1]
    assert seed_of(run.searched()[-1]) == 1, "a search calibrates as the scores before it"


def test_a_named_subnet_is_calibrated_as_it_was_scored(run: RunDirectory, tmp_path: Path) -> None:
    """By its last score; one that was not scored as usual; with a seed by that one."""
    for scored_by in (0, 4):
        pipeline.evaluate(
            *(run.path,), buckets=BUCKETS, bucket_half_width=0.1, per_bucket=2, calibration_images=100, seed=scored_by
        )
    first = run.population()[0].arch
    last = {line.arch: seed_of(line) for line in run.population()}
    cases: list[tuple[str, int | None, object]] = [(first, None, last[first]), ("largest", None, 0), (first, 9, 9)]
    for arch, seed, is_to_be in cases:
        pipeline.extract(run.path, arch, out=tmp_path / "subnet", seed=seed, device="cpu")
        described = read_subnet(tmp_path / "subnet")[1]
        assert described.recalibrated is not None
        assert described.recalibrated["seed"] == is_to_be
        assert described.recalibrated["calibration_images"] == (100 if seed is None and arch != "largest" else 2000)
    assert str(run.load_supernet()[0].space.largest()) not in last
