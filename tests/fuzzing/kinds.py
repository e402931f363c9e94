"""The kinds of files that commands read: how each is read, and what of it may become another value unnoticed."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from trainonce.data import DataSet, formats
from trainonce.data.decode import decode_image
from trainonce.data.folder import read_folder
from trainonce.errors import UserError
from trainonce.export.integrity import check_file
from trainonce.export.predict import open_classifier
from trainonce.lab.studies.run_study import StudyDirectory
from trainonce.lab.studies.study import StudySetup, load_study
from trainonce.latency import LatencyTable
from trainonce.latency.log import Log
from trainonce.models.ofa import load_ofa
from trainonce.nn.native import library
from trainonce.recipes import load_recipe
from trainonce.report import read_run, read_study
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.settings import JsonObject
from trainonce.subnets import read_subnet

Read = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Files that are read together, and by what."""

    files: tuple[str, ...]
    """Patterns of the files that are damaged, below the material."""
    read: Read
    """Gives what is believed of them. The folder given is the material's."""
    weight: float = 6
    """How often it is drawn, beside the others: more often what is quickly read."""
    users: bool = False
    """Whether a person writes or gives these files: another value is then theirs, and taken as it is."""
    optional: bool = False
    """Whether a file that is not there means only that nobody has made it yet."""
    tidied: bool = False
    """Whether its reader writes in the files' folder too."""
    made_again: bool = False
    """Whether lost lines are made again: the first of them, as they were, are then no other value."""


def seen(value: object) -> Any:
    """A value that equals another exactly where they mean the same: types and bits count."""
    match value:
        case Tensor():
            return (
                "tensor",
                str(value.dtype),
                tuple(value.shape),
                _digest(value.detach().contiguous().numpy().tobytes()),
            )
        case np.ndarray():
            return "array", str(value.dtype), value.shape, _digest(value.tobytes())
        case BaseModel():
            return type(value).__name__, seen(value.model_dump())
        case DataSet():
            return value.fingerprint()
        case Mapping():
            return "mapping", tuple((str(key), seen(value[key])) for key in sorted(value, key=str))
        case str() | bytes() | int() | float() | None:
            return type(value).__name__, repr(value)
        case Sequence():
            return tuple(map(seen, value))
    if dataclasses.is_dataclass(value):
        return tuple((field.name, seen(getattr(value, field.name))) for field in dataclasses.fields(value))
    return repr(value)


def difference(one: Any, other: Any) -> str:
    """Where two values that `seen` gave differ first."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return next((difference(a, b) for a, b in zip(one, other, strict=True) if a != b), "nowhere")
    return f"{one!r:.200} was read as {other!r:.200}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _run(read: Callable[[RunDirectory], object]) -> Read:
    return lambda folder: read(RunDirectory(folder / "run"))


def _weights(run: RunDirectory) -> object:
    net, step = run.load_supernet()
    return net.state_dict(), step


def _checkpoint(folder: Path) -> object:
    found = checkpoint.load_latest(folder / "checkpoints")
    return None if found is None else (found.step, found.tensors, found.state)


def _log(folder: Path) -> object:
    log = Log(folder / "log.jsonl", LOG_IDENTITY)
    log.check([{"ms": 3}] * LOG_LINES)
    return log.lines


LOG_IDENTITY: JsonObject = {"measured": "parts", "threads": 1}
LOG_LINES = 5


def _subnet(folder: Path) -> object:
    network, description = read_subnet(folder / "subnet")
    return network.state_dict(), network.spec, description.to_json()


@torch.inference_mode()
def _predicted(folder: Path) -> object:
    classifier = open_classifier(folder / "subnet" / "export" / "onnx" / "model.onnx")
    x_BCHW = torch.linspace(-2, 2, 128).reshape(2, 1, 8, 8)
    return classifier.classes, classifier.preprocessing, classifier.run(x_BCHW)


def _exported(name: str) -> Read:
    """Whether an exported file is whole: what `export --check` and `push` go by."""

    def check(folder: Path) -> object:
        verdict = check_file(folder / "subnet" / "export" / name)
        if verdict.state != "whole":
            raise UserError(verdict.why)
        return verdict.state

    return check


def _study(folder: Path) -> object:
    study = StudyDirectory(folder / "study")
    return study.recorded(), study.finished(), study.results()


def _conclusion(folder: Path) -> object:
    return read_study(folder / "study").conclusion


def _ofa(folder: Path) -> object:
    return load_ofa(folder / "ofa.pth", OFA_NAME, resolutions=(64,)).state_dict()


OFA_NAME = "small mbv3"


def _kernels(folder: Path) -> object:
    """The bytes of the library that would be loaded. The compiler is one that copies: what counts is the cache."""
    command = ["/bin/sh", str(folder / "compiler.sh")]
    kept = library._kept_or_built(folder / "cache", "kernels-0123456789abcdef", command)
    return kept.read_bytes()


def _study_file(folder: Path) -> object:
    setup = StudySetup(image_size=8, channels=1, classes=10, train_images=200)
    return load_study(folder / "mine.toml").build(setup, folder=folder, where="mine.toml")


def _images(folder: Path) -> object:
    published = read_folder(folder / "images", image_size=8, grey=False, stream=False, workers=0)
    return [(name, split.images, split.labels) for name, split in published.given()], published.class_names


def _npz(folder: Path) -> object:
    published = formats.read_npz(folder / "images.npz")
    return [(name, split.images, split.labels) for name, split in published.given()], published.class_names


def _cifar(reader: Callable[[Sequence[Path]], Any], name: str) -> Read:
    def read(folder: Path) -> object:
        split = reader([folder / name])
        return split.images, split.labels

    return read


def _idx(images: str, labels: str) -> Read:
    def read(folder: Path) -> object:
        split = formats.read_idx_pair(folder / images, folder / labels, num_classes=10)
        return split.images, split.labels

    return read


KINDS: dict[str, Kind] = {
    "run.json": Kind(files=("run/run.json",), read=_run(RunDirectory.config)),
    "metrics.jsonl": Kind(files=("run/*metrics.jsonl*",), read=_run(RunDirectory.metrics)),
    "forgetting.jsonl": Kind(files=("run/*forgetting.jsonl*",), read=_run(RunDirectory.forgetting)),
    "population.jsonl": Kind(files=("run/*population.jsonl*",), read=_run(RunDirectory.population)),
    "search.jsonl": Kind(files=("run/*search.jsonl*",), read=_run(RunDirectory.searched)),
    "exposure.npz": Kind(files=("run/exposure.npz",), read=_run(RunDirectory.exposure)),
    "front.json": Kind(files=("run/front.json",), read=_run(lambda run: read_run(run).front), optional=True),
    "interference.json": Kind(
        files=("run/interference.json",), read=_run(lambda run: read_run(run).interference), optional=True
    ),
    "a run's weights": Kind(files=("run/run.json", "run/checkpoints/*/*"), read=_run(_weights), weight=0.3),
    "checkpoints": Kind(files=("checkpoints/*/*",), read=_checkpoint, weight=8),
    "latency table": Kind(files=("table.json",), read=lambda folder: LatencyTable.read(folder / "table.json")),
    "latency log": Kind(files=("log.jsonl",), read=_log, made_again=True),
    "subnet": Kind(files=("subnet/*",), read=_subnet, weight=2),
    "onnx": Kind(files=("subnet/export/onnx/*",), read=_predicted, weight=3),
    "onnx, checked": Kind(files=("subnet/export/onnx/model.onnx",), read=_exported("onnx/model.onnx"), weight=3),
    "torch.export, checked": Kind(files=("subnet/export/torch/*",), read=_exported("torch/model.pt2"), weight=3),
    "study": Kind(files=("study/study.json", "study/*results.jsonl*", "study/*times.jsonl*"), read=_study),
    "conclusion.json": Kind(files=("study/conclusion.json",), read=_conclusion, optional=True, weight=1),
    "OFA weights": Kind(files=("ofa.pth",), read=_ofa, weight=0.5),
    "kernel cache": Kind(files=("cache/*",), read=_kernels, weight=1, tidied=True),
    "npz": Kind(files=("images.npz",), read=_npz, users=True),
    "image folder": Kind(files=("images/*/*",), read=_images, users=True),
    "a picture": Kind(
        files=("picture.*",),
        read=lambda folder: [
            decode_image(path, image_size=16, grey=False) for path in sorted(folder.glob("picture.*"))
        ],
        users=True,
    ),
    "IDX": Kind(files=("*-ubyte",), read=_idx("images-ubyte", "labels-ubyte"), users=True, weight=2),
    "IDX, gzip": Kind(files=("*-ubyte.gz",), read=_idx("images-ubyte.gz", "labels-ubyte.gz"), users=True, weight=2),
    "CIFAR-10": Kind(files=("cifar10.bin",), read=_cifar(formats.read_cifar10, "cifar10.bin"), users=True, weight=2),
    "CIFAR-100": Kind(
        files=("cifar100.bin",), read=_cifar(formats.read_cifar100, "cifar100.bin"), users=True, weight=2
    ),
    "recipe.toml": Kind(
        files=("recipe.toml",), read=lambda folder: load_recipe(str(folder / "recipe.toml")), users=True
    ),
    "study.toml": Kind(files=("mine.toml",), read=_study_file, users=True, weight=2),
}
"""By name. What is in several kinds is read by several commands."""
