"""What `trainonce ship` records of each device: `ship.json`."""

from pathlib import Path

from pydantic import Field

from trainonce.errors import RunError, UserError
from trainonce.files import is_there, write_atomic
from trainonce.records import to_json
from trainonce.run.directory import RunDirectory
from trainonce.settings import JsonObject, Number, Record, Whole
from trainonce.subnets.description import RecordedScore

FORMAT = "trainonce-ship-1"
FILE = "ship.json"


class ShipOptions(Record):
    """What a device's network and its certificate follow from, beside the device."""

    step: Whole
    """The training step of the weights."""
    weights_sha256: str = ""
    """Of all weights of the supernet; earlier versions did not write it."""
    scores: Whole
    """True scores that its search asked for."""
    finetune_epochs: Whole
    seed: int
    calibration_images: Whole | None = None
    """What its search was to be calibrated with; None: as the scores recorded before."""
    images: Whole = 64
    """How many inputs the file was compared on, beside the test split."""
    latency_sha256: str | None = None
    """Of the latency table that says its latency; None where it is measured."""


class Shipped(Record):
    """What a device got."""

    device: JsonObject
    """What was asked for: `Device`, without its place in the list."""
    options: ShipOptions
    subnet: str
    """Its directory, in that of ship.json, as the paths below."""
    arch: str
    id: str
    macs: Whole
    params: Whole
    validate_score: RecordedScore
    """Of the network as it is handed over; it was chosen by it, which flatters a little."""
    test_top1: Number
    """Percent of the whole test split that the exported file classifies correctly."""
    test_interval: list[Number]
    """Its 95% interval (Wilson)."""
    test_images: Whole
    file: str
    """What to give to the runtime."""
    file_bytes: Whole
    """Flash, without the runtime and the program: all its files together, or what of them a microcontroller needs."""
    predicted_bytes: Whole
    """What the search took it to be."""
    ram_bytes: Whole
    """The arena that a microcontroller's runtime planned; else as predicted."""
    predicted_ram_bytes: Whole
    """What the search took that to be: `trainonce.search.footprint`."""
    ram_measured: bool
    """Whether the runtime said it."""
    latency_ms: Number | None
    """Of one image: by the device's latency table; else measured here, beside other work as it may be."""
    latency_table: str | None
    """The table; None where it was measured here."""
    quiet: bool | None = None
    """Whether the machine was quiet while it was measured here: where not, other work ran beside."""
    certificate: str
    ran: bool = True
    """Whether the file was computed by its runtime; where that is not here, top-1 on test is the network's."""
    verdict: str
    seconds: Number

    @property
    def name(self) -> str:
        """The device's name."""
        return str(self.device["name"])


class ShipRecord(Record):
    """What ship.json holds."""

    format: str
    run: str
    shipped: list[Shipped]
    failed: dict[str, str] = Field(default_factory=dict)
    """Why, of each device that failed when it was last tried."""


def record(run: RunDirectory, out: str | Path, done: dict[str, Shipped], failed: dict[str, str]) -> None:
    """Write what is done and what failed, beside what became of other devices in other calls.

    Raises `RunError` where the disk refuses.
    """
    if not done and not failed:
        return
    file, before = Path(out) / FILE, _read(out)
    known = {one.name: one for one in before.shipped} if before else {}
    failures = {name: why for name, why in (before.failed if before else {}).items() if name not in done} | failed
    values = {
        "format": FORMAT,
        "run": str(run.path.resolve()),
        "shipped": [one.to_json() for name, one in (known | done).items() if name not in failed],
        "failed": failures,
    }
    try:
        write_atomic(file, to_json(ShipRecord.read(values, where=FILE).to_json()))
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror}") from error


def recorded(out: str | Path) -> list[Shipped]:
    """What ship.json says of each device; nothing without one. Raises `UserError` where it is damaged."""
    found = _read(out)
    return found.shipped if found else []


def _read(out: str | Path) -> ShipRecord | None:
    file = Path(out) / FILE
    if not is_there(file):
        return None
    found = ShipRecord.read_file(file)
    if found.format != FORMAT:
        raise UserError(f"{file} is not what this version writes ({FORMAT})")
    return found
