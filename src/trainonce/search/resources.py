"""What a subnet needs of a device: MACs, parameters, latency, peak memory, file size, with units and limits."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trainonce.errors import UserError
from trainonce.latency import LatencyTable
from trainonce.latency.runtimes import TARGETS_OF
from trainonce.models import Supernet
from trainonce.names import plain
from trainonce.run.directory import RunDirectory
from trainonce.search.footprint import file_bytes, is_counted, ram_bytes
from trainonce.space import Architecture

COUNTS = {"": 1e6, "k": 1e3, "m": 1e6, "g": 1e9}
BYTES = {"": 1e6, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
UNITS: dict[str, dict[str, float]] = {
    "macs": COUNTS,
    "params": COUNTS,
    "latency": {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3},
    "memory": BYTES,
    "size": BYTES,
}
"""For each resource, what a person's unit is worth in the resource's own; without a unit, millions or milliseconds."""
SHOWN: dict[str, tuple[str, float]] = {
    "macs": ("M MACs", 1e6),
    "params": ("M parameters", 1e6),
    "latency": ("ms", 1.0),
    "memory": ("MB peak memory", 1e6),
    "size": ("MB file", 1e6),
}
"""The unit in which a resource is shown, and what it is worth."""
NAMES = tuple(UNITS)
MOST_MILLIONS = 1e5
"""No network has so many million MACs or parameters: who writes so large a number without a unit counts in ones."""
EXAMPLES = {"macs": "10M", "params": "3M", "latency": "5ms", "memory": "2MB", "size": "10MB"}


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What a subnet needs of a device: the less, the better.

    `of` gives it for an architecture: a count (macs, params), milliseconds (latency) or bytes (memory, size).
    """

    name: str
    of: Callable[[Architecture], float]
    numbers: str = "float32"
    """Of memory and size: the numbers that are counted, of `BYTES_PER_VALUE`."""
    target: str | None = None
    """Of memory and size: the export target whose operators are counted, where they are."""

    def text(self, value: float) -> str:
        """A value with its unit, such as 4.05 M MACs; a resource of your own is its unit."""
        unit, worth = SHOWN.get(self.name, (self.name, 1.0))
        return f"{value / worth:.4g} {unit}{'' if self.numbers == 'float32' else f' in {self.numbers}'}"


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most that a resource may be."""

    resource: Resource
    most: float

    def violation(self, arch: Architecture) -> float:
        """By which part of the limit a subnet is beyond it; 0 or less: within."""
        beyond = self.resource.of(arch) - self.most
        return beyond / self.most if self.most > 0 else beyond

    def __str__(self) -> str:
        return f"at most {self.resource.text(self.most)}"


def quantity(name: str, amount: str | float, *, said: str = "") -> float:
    """What a person wrote as a limit on a resource (10, 10M, 5ms, 2.5MB, 512KiB), in the resource's own unit.

    A number is as if written without a unit.

    Raises `UserError` that says what would be right; `said` is what it calls the limit, --max-NAME by default.
    """
    text = amount if isinstance(amount, str) else plain(amount, 15)
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})\s*([a-zµ]*)\s*", text, re.IGNORECASE)
    worth = UNITS[name].get(found[2].lower()) if found else None
    if found is None or worth is None:
        raise UserError(
            f"{said or f'--max-{name}'} takes a positive number, perhaps with a unit, such as {EXAMPLES[name]}, "
            f"not {text!r}"
        )
    if UNITS[name] is COUNTS and not found[2] and float(found[1]) >= MOST_MILLIONS:
        raise UserError(
            f"{said or f'--max-{name}'} is in millions where no unit is given: {text} would be "
            f"{float(found[1]):,.0f} million. Say {plain(float(found[1]) / 1e6, 15)}M for {float(found[1]):,.0f}"
        )
    return round(float(found[1]) * worth, 6)  # so that 0.4M is 400k


def resource_named(
    name: str,
    net: Supernet,
    *,
    latency_table: str | Path | None = None,
    numbers: str = "float32",
    target: str | None = None,
) -> Resource:
    """The resource of that name for the subnets of a supernet, each counted once.

    Memory and size are those of a network that computes in `numbers`: float32, float16 or int8; with the name of an
    export target what its file and its runtime need, as far as that is known (`trainonce.search.footprint`).
    Raises `UserError` for another name, for latency without a table, and for a table that does not fit the supernet or
    is of several images in a call.
    """
    if name not in NAMES:
        raise UserError(f"no resource {name!r}; the resources are {', '.join(NAMES)}")
    if name == "latency":
        if latency_table is None:
            raise UserError("latency needs a table of this device: trainonce latency build makes one")
        return Resource(name=name, of=latency_of(net, latency_table))
    of: dict[str, Callable[[Architecture], float]] = {
        "macs": lambda arch: net.cost(arch).macs,
        "params": lambda arch: net.cost(arch).params,
        "memory": lambda arch: ram_bytes(net.describe(arch), numbers=numbers, target=target),
        "size": lambda arch: file_bytes(net.describe(arch), numbers=numbers, target=target),
    }
    return Resource(
        name=name,
        of=cache(of[name]),
        numbers=numbers if name in ("memory", "size") else "float32",
        target=target if is_counted(target, name) else None,
    )


def latency_of(net: Supernet, path: str | Path) -> Callable[[Architecture], float]:
    """Milliseconds of one image by a latency table.

    Raises `UserError` where it is damaged, of several images in a call, or of another supernet.
    """
    table = LatencyTable.read(path)
    if table.batch != 1:
        raise UserError(
            f"the latency table {path} is of {table.batch} images in a call, and latency here is that of one image: "
            "make one with --batch 1"
        )
    for arch in (net.space.smallest(), net.space.largest()):
        try:
            table.predict_ms(net.describe(arch))
        except UserError as error:
            raise UserError(f"the latency table {path} is not of this supernet: {error}") from error
    return cache(lambda arch: table.predict_ms(net.describe(arch)))


def unsuited(table: str | Path | None, target: str | None) -> str | None:
    """What is to be said of a latency table whose runtime is not what runs an export target's files; None where it is.

    Raises `UserError` where the table is damaged.
    """
    if table is None or target is None:
        return None
    runtime = LatencyTable.read(table).runtime
    if target in TARGETS_OF.get(runtime, ()):
        return None
    right = [name for name, targets in TARGETS_OF.items() if target in targets]
    instead = f"make one with --runtime {right[0]}" if right else "no runtime of tables runs those"
    return f"the latency table {table} says what {runtime} takes, not what files of {target} take: {instead}"


def table_at(
    run: RunDirectory, named: str | Path | None, *, needed: bool = False, by: str = "with --latency"
) -> Path | None:
    """The latency table that a person names: a file, or a name in RUN/latency; without a name, the only one there.

    Raises `UserError` where there is no such table, and where one is needed, none is named and none or several are
    there: `by` says how one names it. Else None where none is named and not just one is there.
    """
    there = sorted(run.latency.glob("*.json")) if run.latency.is_dir() else []
    if named is None:
        if needed and not there:
            raise UserError(
                f"latency needs a table of this device: `trainonce latency build {run.path}` makes one; another is "
                f"named {by}"
            )
        if needed and len(there) > 1:
            raise UserError(f"{run.latency} has {', '.join(path.stem for path in there)}: say which {by}")
        return there[0] if len(there) == 1 else None
    inside = run.latency / f"{named}.json"
    for path in (Path(named), inside):
        if path.is_file():
            return path
    listed = f"; {run.latency} has {', '.join(path.stem for path in there)}" if there else ""
    raise UserError(f"there is no latency table {named} (nor {inside}){listed}; trainonce latency build makes one")
