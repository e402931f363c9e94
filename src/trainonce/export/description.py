"""What travels inside an exported file, so that it can be used without anything beside it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import Field
from torch import Tensor

from trainonce.errors import UserError
from trainonce.export.seal import SEALED
from trainonce.settings import JsonObject, Number, Record, Settings, Whole
from trainonce.subnets.description import Preprocessing, SubnetDescription

FORMAT: Literal["trainonce-export-2"] = SEALED
KEY = "trainonce"
"""The name under which the description stands in a file's metadata."""
INPUT, OUTPUT = "images", "logits"

Precision = Literal["float32", "float16", "int8"]
"""The numbers of a file's weights, and what it computes in where the processor has arithmetic for them."""
Run = Callable[[Tensor], Tensor]
"""Float32 images [B, C, H, W], normalised and of the right size, to logits [B, classes]."""


class FileDescription(Settings):
    """What an exported file says of itself."""

    format: Literal["trainonce-export-1", "trainonce-export-2"] = FORMAT
    """The format of this description; files of the first carry no hash of themselves."""
    architecture: str
    """The subnet's architecture."""
    classes: tuple[str, ...] = Field(min_length=1)
    """Names of the classes, in the order of the logits."""
    preprocessing: Preprocessing
    """How an image becomes the input."""
    network: dict[str, Any]
    """The sizes of the network."""
    weights_sha256: str
    """Hash of the subnet's weights."""
    precision: Precision = "float32"
    """The numbers that the file computes in."""
    batch: int | None = None
    """How many images a call takes; None: any number."""
    layers: dict[str, str] = Field(default_factory=dict)
    """For each layer the name of the tensor inside the file that is its output, where the file names tensors."""
    sha256_with_program: str | None = None
    """Where this lies beside a program: hash of this text up to here, and then of the program. The last key."""

    def of_subnet(self) -> JsonObject:
        """What it says of the subnet, and not of the file that it stands in, as JSON values."""
        of_file = {"format", "precision", "batch", "layers", "sha256_with_program"}
        return self.model_dump(mode="json", exclude=of_file)

    def to_text(self) -> str:
        """The description as JSON."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_text(cls, text: str, *, where: str) -> Self:
        """The description that `to_text` wrote. Raises `UserError` that names `where`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: its description is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"{where}: its description is a JSON {type(values).__name__} where an object belongs")
        return cls.parse(values, where=where)


def check_shapes(
    description: FileDescription, images_CHW: Sequence[object], logits_K: Sequence[object], where: str
) -> None:
    """Raise a `UserError` that names `where` if a file that takes and gives these shapes is not the one described."""
    how = description.preprocessing
    described = [how.channels, how.resolution, how.resolution], [len(description.classes)]
    if (list(images_CHW), list(logits_K)) != described:
        raise UserError(f"{where} takes and gives other shapes than its description says")


def describe_file(description: SubnetDescription, weights_sha256: str, *, where: str) -> FileDescription:
    """A file's description from a subnet's. Raises `UserError` for what is missing or malformed."""
    given = description.preprocessing.to_json()
    known = {name: given[name] for name in Preprocessing.model_fields if name in given}
    return FileDescription.parse(
        {
            "architecture": description.architecture,
            "classes": description.classes,
            "network": description.network,
            "preprocessing": known,
            "weights_sha256": weights_sha256,
        },
        where=where,
    )


class Quantised(Record):
    """How a file was made int8, what that cost, and what a microcontroller needs for it; nothing of another file.

    Top-1 is in percent of the validate images.
    """

    calibration_images: Whole | None = None
    validate_images: Whole | None = None
    validate_top1_float32: Number | None = None
    validate_top1_int8: Number | None = None
    validate_loss: Number | None = None
    """Points of top-1."""
    kept_in_float32: list[str] = Field(default_factory=list)
    """The layers that are not int8."""
    loss_by_layer: dict[str, Number] = Field(default_factory=dict)
    """What each layer alone costs in int8, where it was looked at."""
    arena_bytes: Whole | None = None
    """For a microcontroller: what its runtime plans in memory, maps and the runtime's records, on this machine."""
    flash_bytes: Whole | None = None
    """For a microcontroller: the file without what it does not need; the runtime's own code comes on top."""
    operators: dict[str, Whole] = Field(default_factory=dict)
    """For a microcontroller: the kernels that it must have, and how often each is called for an image."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """An exported file, or several that belong together, by name; `details` go into the certificate."""

    files: dict[str, bytes]
    details: Quantised = field(default_factory=Quantised)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An exported file that is ready to compute.

    `layers` gives the outputs [B, …] of the named layers for images, where the file lets one look inside.
    """

    description: FileDescription
    run: Run
    layers: Callable[[Tensor, Sequence[str]], dict[str, Tensor]] | None = None
