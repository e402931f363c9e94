"""The benchmark of certificates, in miniature: what is done is not done again, but for other weights."""

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch

from trainonce.evaluation.evaluator import EvaluateSettings
from trainonce.export import TARGETS, Target
from trainonce.export.description import Opened, Written
from trainonce.export.reference import Reference
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory

HELD: list[Reference] = []


def write_itself(reference: Reference, _max_loss: float) -> Written:
    HELD[:] = [reference]
    return Written(files={"file": b"content"})


ITSELF = Target(
    name="itself",
    about="",
    files=("file",),
    write=write_itself,
    open=lambda _files, _threads, _where: Opened(description=HELD[0].file, run=HELD[0].network),
)
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[dict[str, str]]]:
    """Run it on a run's directory with two subnets, which must pass, and give the lines of its file.

    What is exported is the network itself, and little is calibrated and timed, so that it takes no time.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(TARGETS, "itself", ITSELF)
    module, out = import_module("certificates"), tmp_path / "lines.jsonl"
    monkeypatch.setattr(module, "EvaluateSettings", lambda: EvaluateSettings(calibration_images=24))

    def run(path: Path) -> list[dict[str, str]]:
        monkeypatch.setattr("sys.argv", ["", str(path), "--out", str(out), "--test-images", "8", "--count", "itself=2"])
        assert module.main() == 0
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    return run


def test_another_supernet_gets_certificates_of_its_own(
    home: RunDirectory,
    tmp_path: Path,
    benchmark: Callable[[Path], list[dict[str, str]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = benchmark(home.path)
    assert benchmark(home.path) == lines
    assert len(lines) == 2
    shutil.copytree(home.path, tmp_path / "run", ignore=shutil.ignore_patterns("export*"))
    net, _ = home.load_supernet()
    with torch.no_grad():
        net.classifier.bias.add_(1)  # type: ignore[operator, union-attr]
    checkpoint.save(tmp_path / "run" / "checkpoints", 4, {"weights": net.state_dict()}, {"step": 4})
    capsys.readouterr()
    more = benchmark(tmp_path / "run")
    assert more[:2] == lines
    assert [line["architecture"] for line in more[2:]] == [line["architecture"] for line in lines]
    assert len({line["weights_sha256"] for line in more}) == 4
    assert "2 of 2" in capsys.readouterr().out
