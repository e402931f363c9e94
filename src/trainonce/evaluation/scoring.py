"""Scoring subnets chunk by chunk, in this process or in a worker elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from trainonce.data import DataSet, Split
from trainonce.data.stream import ImageFiles
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score, SplitName
from trainonce.models import Supernet
from trainonce.settings import Settings
from trainonce.space import Architecture

Chunk = tuple[Architecture, ...]

CHUNK = 8
"""Most subnets in a chunk: what is lost where a worker dies, and how long it can take until a run stops."""


def chunks_of(archs: Sequence[Architecture], workers: int) -> list[Chunk]:
    """Divide architectures among workers, those that begin alike together; smaller chunks towards the end.

    So workers end at about the same time.
    """
    ordered = sorted(archs, key=str)
    chunks = []
    while ordered:
        size = max(1, min(CHUNK, len(ordered) // (4 * workers)))
        chunks.append(tuple(ordered[:size]))
        ordered = ordered[size:]
    return chunks


class Scoring:
    """Makes the function from a chunk to the scores of its subnets: what `fan_out` takes.

    It pickles by value as plain bytes, without the images that scoring does not look at, and is set up again on
    `device` (by default the network's own).
    """

    def __init__(self, net: Supernet, evaluator: Evaluator, *, device: str | None = None) -> None:
        self.net = net
        self.evaluator = evaluator
        self.device = device or str(next(net.parameters()).device)

    def __call__(self) -> Callable[[Chunk], list[Score]]:
        """The function; scores come in the order of the chunk."""
        return self._score

    def _score(self, chunk: Chunk) -> list[Score]:
        return [self.evaluator(self.net, arch) for arch in chunk]

    def __reduce__(self) -> tuple[Callable[["_Packed"], "Scoring"], tuple["_Packed"]]:
        return _unpack, (_pack(self),)


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """A network and an evaluator as values that any pickler carries as they are."""

    network: type[Supernet]
    network_settings: Settings
    evaluator: type[Evaluator]
    split: SplitName
    evaluate_settings: EvaluateSettings
    data: dict[str, Any]
    """The fields of the `DataSet` that are not splits."""
    tensors: bytes
    """Weights and images, in the safetensors format. Tensors themselves would travel through shared memory, which
    is small in containers."""
    files: dict[str, ImageFiles]
    """The images of splits that are streamed."""
    device: str


def _pack(scoring: Scoring) -> _Packed:
    evaluator, data = scoring.evaluator, scoring.evaluator.data
    used = {"calibrate": data.calibrate, evaluator.split_name: evaluator.split}
    tensors = {f"weights/{name}": tensor for name, tensor in scoring.net.state_dict().items()}
    files: dict[str, ImageFiles] = {}
    for name, split in used.items():
        tensors[f"{name}/labels"] = split.labels
        if isinstance(split.pixels, ImageFiles):
            files[name] = replace(split.pixels, workers=0)  # a worker decodes for itself
        else:
            tensors[f"{name}/pixels"] = split.pixels
    plain = ("name", "class_names", "mean", "std", "augmentation", "source")
    return _Packed(
        network=type(scoring.net),
        network_settings=scoring.net.settings,
        evaluator=type(evaluator),
        split=evaluator.split_name,
        evaluate_settings=evaluator.settings,
        data={field: getattr(data, field) for field in plain},
        tensors=tensors_to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}),
        files=files,
        device=scoring.device,
    )


def _unpack(packed: _Packed) -> Scoring:
    tensors = tensors_from_bytes(packed.tensors)
    net = packed.network(packed.network_settings)  # every family is made from its settings
    net.load_state_dict(_under("weights", tensors))
    given = {
        name: Split(packed.files.get(name) or tensors[f"{name}/pixels"].clone(), tensors[f"{name}/labels"].clone())
        for name in ("calibrate", packed.split)
    }
    none = given["calibrate"].take(np.zeros(0, np.int64))
    data = DataSet(
        **packed.data,
        train=none,
        calibrate=given["calibrate"],
        validate=given.get("validate", none),
        test=given.get("test", none),
    ).to(packed.device)
    evaluator = packed.evaluator(data, packed.split, packed.evaluate_settings)
    return Scoring(net.eval().to(packed.device), evaluator, device=packed.device)


def _under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `name/`, by what follows, in memory of their own."""
    start = f"{name}/"
    return {key.removeprefix(start): t.clone() for key, t in tensors.items() if key.startswith(start)}
