"""What is damaged: one small example of everything that commands write or take, made with the commands themselves."""

import gzip
import importlib.util
import shutil
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from tests.fuzzing.kinds import KINDS, LOG_IDENTITY, LOG_LINES, OFA_NAME
from tests.support.command_line import trainonce
from tests.support.latency_tables import table_with

from trainonce.latency.log import Log, MeasuredLine
from trainonce.latency.parts import representatives
from trainonce.models import MobileNetV3
from trainonce.models.ofa import OFA_NETWORKS
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory

HERE = ("--device", "cpu")
RECIPE = """name = "mine"
about = "Two phases."
batch_size = 32

[[phases]]
name = "largest"
epochs = 2
subnets = ["largest"]

[[phases]]
name = "all"
epochs = 3.5
lr = 0.02
subnets = ["largest", "uniform"]
target = "largest"
ramp_epochs = 1
"""
STUDY = """about = "Which is better."
question = "Is it?"
seeds = [0, 1]

[[arms]]
name = "one"
recipe = "spos"
epochs = 1

[[arms]]
name = "two"
recipe = "sandwich"
passes = 1
factors = {n = 2}

[evaluate]
per_bucket = 1
calibration_images = 8
"""


def make(folder: Path) -> None:
    """Fill a folder that is there and empty."""
    _images(folder)
    _texts(folder)
    _run(folder)
    _study(folder)
    _checkpoints(folder)
    _latency(folder)
    _ofa(folder)
    _kernels(folder)


def know_ofa() -> ModuleType:
    """Let `load_ofa` know a narrow network of OFA's definition; gives the module that makes its weights."""
    OFA_NETWORKS[OFA_NAME] = (MobileNetV3, 0.25)
    spec = importlib.util.spec_from_file_location(
        "ofa_reference", Path(__file__).parents[1] / "support" / "ofa_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ofa_reference"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def _do(*arguments: str | Path) -> None:
    result = trainonce(*arguments)
    assert result.code == 0, (arguments, result.err)


def _images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200, dtype=np.int64) % 10
    pixels = rng.integers(0, 256, (200, 8, 8), dtype=np.uint8)
    np.savez(folder / "images.npz", train_images=pixels, train_labels=labels)
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number, suffix in enumerate(("png", "jpg", "png", "jpg")):
            picture = Image.fromarray(rng.integers(0, 256, (10, 9, 3), dtype=np.uint8))
            picture.save(folder / "images" / name / f"{number}.{suffix}")
    for suffix in ("png", "jpg", "webp", "bmp", "tiff"):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"picture.{suffix}")
    idx = struct.pack(">4B3I", 0, 0, 8, 3, 20, 8, 8) + pixels[:20].tobytes()
    idx_labels = struct.pack(">4BI", 0, 0, 8, 1, 20) + labels[:20].astype(np.uint8).tobytes()
    for name, content in (("images", idx), ("labels", idx_labels)):
        (folder / f"{name}-ubyte").write_bytes(content)
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(content, mtime=0))
    for name, label_bytes in (("cifar10", 1), ("cifar100", 2)):
        records = rng.integers(0, 256, (4, label_bytes + 3072), dtype=np.uint8)
        records[:, :label_bytes] = rng.integers(0, 10, (4, label_bytes))
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def _texts(folder: Path) -> None:
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "mine.toml").write_text(STUDY)


def _run(folder: Path) -> None:
    run, few = folder / "run", ("--calibration-images", "16", *HERE)
    options = ("--recipe", "spos", "--epochs", "4", "--width", "0.25", "--batch-size", "64", *HERE, "--out", run)
    _do("train", folder / "images.npz", *options, "--probes", "3")
    _do("evaluate", run, "--per-bucket", "2", "--workers", "1", *few)
    _do("search", run, "--max-macs", "100M", "--scores", "4", "--no-predictor", "--workers", "1", *few)
    _do("measure", run, "--probes", "2", "--batches", "2", *few)
    _do("extract", run, "smallest", "--test", "--out", folder / "subnet", *HERE)
    for target in ("onnx", "torch"):
        _do("export", folder / "subnet", "--to", target, "--run", run, "--images", "4")


def _study(folder: Path) -> None:
    options = ("--out", folder / "study", "--threads", "1", "--workers", "1", *HERE)
    _do("study", folder / "mine.toml", folder / "images.npz", *options)
    shutil.rmtree(folder / "study" / "runs" / "two-seed1" / "checkpoints")


def _checkpoints(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for step in (10, 20):
        tensors = {"weights": {"a": torch.randn(16, generator=generator), "n": torch.tensor(step)}}
        tensors["optimizer"] = {"a": torch.randn(16, generator=generator)}
        checkpoint.save(folder / "checkpoints", step, tensors, {"step": step, "seconds": 1.5 * step})


def _latency(folder: Path) -> None:
    times = dict.fromkeys(representatives(RunDirectory(folder / "run").build_supernet()), 0.5)
    table_with({name: 0.5 + number / 7 for number, name in enumerate(list(times)[:20])}).write(folder / "table.json")
    log = Log(folder / "log.jsonl", LOG_IDENTITY)
    for number in range(LOG_LINES):
        log.add(MeasuredLine(number=number, ms=[0.25 + number, 0.5, 1 / 3]))


def _ofa(folder: Path) -> None:
    reference = know_ofa()
    torch.save({"state_dict": reference.state_dict(reference.mbv3(0.25, 3))}, folder / "ofa.pth")


def _kernels(folder: Path) -> None:
    """A cache whose one library is made by a compiler that copies, given `-o FILE -lm`."""
    (folder / "library").write_bytes(np.random.default_rng(1).bytes(5000))
    (folder / "compiler.sh").write_text('cp "${0%/*}/library" "$2"\n')
    KINDS["kernel cache"].read(folder)
