"""The lowest versions allowed are tested: the story with every extra, which `make test-lowest` runs in them."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.command_line import trainonce

from trainonce.run.directory import RunDirectory

ROOT = Path(__file__).parent.parent
EXTRAS = ("plot", "search", "onnx", "hub")
UNTESTED = {"torch"}
"""Torch below the pinned version is not tried: on Linux its other releases bring gigabytes of CUDA."""


def test_the_lowest_versions_allowed_are_the_tested_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    allowed = dict(one.split(">=") for one in wanted)
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert allowed.keys() == tested.keys()
    for name in allowed.keys() - UNTESTED:
        assert re.fullmatch(rf"{re.escape(allowed[name])}(\.0)*", tested[name]), name


@pytest.mark.lowest
def test_the_story_with_every_extra(tmp_path: Path) -> None:
    """From images to files for a device, the page and the card: every dependency does what it is there for."""
    run, small = tmp_path / "run", ("--width", "0.25", "--batch-size", "256", "--device", "cpu")
    few = ("--calibration-images", "50", "--device", "cpu", "--workers", "1")

    def done(*arguments: str | Path) -> str:
        result = trainonce(*arguments)
        assert result.code == 0, result.err
        return result.out

    assert "rss" in done("list")
    done("train", "digits", "--recipe", "spos", "--epochs", "1", *small, "--out", run)
    done("evaluate", run, "--per-bucket", "2", *few)
    found = json.loads(done("search", run, "--max-macs", "1.5", "--scores", "24", "--json", *few))
    assert found["search"]["best"]["macs"] <= 1.5e6
    subnet = Path(json.loads(done("extract", run, "--max-macs", "1.5", "--test", "--json"))["path"])
    done("export", subnet, "--to", "onnx", "--to", "onnx-int8", "--to", "torch", "--max-loss", "100")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    said = {done("predict", model, tmp_path / "image.png") for model in (subnet, subnet / "export/onnx/model.onnx")}
    assert len(said) == 1
    done("draw", run, "--out", tmp_path / "population.png")
    done("report", run)
    assert (run / "report.html").stat().st_size > 100_000
    assert "model.safetensors" in done("push", subnet, "owner/name", "--dry-run")
    assert len(RunDirectory(run).searched()) > 20
