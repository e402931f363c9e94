"""The table of a device: what each part of a network takes there. A small JSON file that goes anywhere."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, JsonValue

from trainonce.errors import RunError, UserError
from trainonce.files import write_atomic
from trainonce.latency.accuracy import PredictionError
from trainonce.latency.parts import amounts_of, part_name
from trainonce.nn.kinds import PlainSpec
from trainonce.records import plain_json, read_document
from trainonce.settings import Settings

FAMILY = "trainonce-latency-"
FORMAT = "trainonce-latency-1"
HASH = "sha256"
MOST_THREADS = 1024
MOST_BATCH = 4096


class PartTime(Settings):
    """One part and its times."""

    part: dict[str, JsonValue]
    """Its sizes, as `trainonce.latency.parts` names them."""
    ms: float = Field(ge=0, le=1e9)
    """What it adds to a network, in milliseconds."""
    alone_ms: float | None = Field(ge=0, le=1e9)
    """What it took when it ran alone, in milliseconds; None where it cannot."""
    most: float | None = Field(None, gt=0)
    """How much of it takes `ms`, the most that a subnet of the space has: less takes less. None where it is counted."""

    @property
    def name(self) -> str:
        """The part's name."""
        return part_name(self.part)


class LatencyTable(Settings):
    """What subnets of a space take on one machine, with one runtime, as a sum over their parts."""

    format: Literal["trainonce-latency-1"] = "trainonce-latency-1"
    """The format's name and version."""
    runtime: str
    """What ran the networks, of `trainonce.latency.RUNTIMES`."""
    threads: int = Field(ge=1, le=MOST_THREADS)
    """How many threads it had."""
    batch: int = Field(ge=1, le=MOST_BATCH)
    """How many images a call took."""
    resolutions: tuple[int, ...]
    """Sides of the images in pixels."""
    machine: dict[str, str | int | None]
    """The processor's name, its cores, the system."""
    versions: dict[str, str]
    """Versions of the runtime and of what made its networks."""
    made: str
    """When it was made, in UTC."""
    settings: dict[str, JsonValue]
    """How it was measured."""
    drift: tuple[float, float]
    """The machine's slowest and fastest pace while it was measured, as factors; this was taken out."""
    error: PredictionError
    """How well it predicts random subnets that it was not made from: the mean of two measurements of each."""
    repeat: PredictionError
    """How well the first of these measurements predicts the second, prepared anew. No table can do much better."""
    parts: tuple[PartTime, ...] = Field(min_length=1)
    """All parts that a subnet of the space can have."""

    @property
    def sha256(self) -> str:
        """A hash of all its values, the one that its file holds."""
        return _hash(self.model_dump(mode="json"))

    @cached_property
    def _times(self) -> dict[str, PartTime]:
        return {entry.name: entry for entry in self.parts}

    def predict_ms(self, spec: PlainSpec) -> float:
        """Milliseconds of one call of a network, with `batch` images.

        Raises `UserError` for a network that has a part which was not measured.
        """
        total = 0.0
        for name, amount in amounts_of(spec).items():
            part = self._times.get(name)
            if part is None or (part.most is not None and amount > part.most):
                table = f"the latency table (made {self.made}, {self.runtime})"
                raise UserError(f"{table} is of another space: it has no {_described(name, amount if part else None)}")
            total += part.ms * amount / (part.most or 1)
        return total

    def write(self, path: str | Path) -> None:
        """Write the table, replacing one that is there. Raises `RunError` where the disk refuses."""
        path = Path(path)
        values = self.model_dump(mode="json")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, plain_json({**values, HASH: _hash(values)}))
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The table in a file. Raises `UserError` that says what is missing, foreign, of another version or damaged."""
        path = Path(path)
        values, _ = read_document(path)  # its own hash is its sum
        form = values.get("format")
        if not isinstance(form, str) or not form.startswith(FAMILY):
            raise UserError(f"{path} is not a latency table: make one with `trainonce latency build`")
        if form != FORMAT:
            raise UserError(
                f"{path} is a latency table of another version ({form[:60]!r}; this one reads {FORMAT!r}): make it anew"
            )
        recorded = values.pop(HASH, None)
        if recorded != _hash(values):
            raise UserError(f"{path} is damaged: its content is not what its checksum was made of")
        return cls.parse(values, where=str(path))


def _hash(values: Mapping[str, Any]) -> str:
    """Of the values, not of the bytes: blanks and the order of keys do not count."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _described(name: str, amount: float | None) -> str:
    """A part, or so much of it."""
    part = json.loads(name)
    much = "" if amount is None else f"{amount:g} of "
    return f"{much}{part.pop('part')} with " + ", ".join(f"{key} {value}" for key, value in part.items())
