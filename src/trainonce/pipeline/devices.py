"""Devices: what each of them has room and time for, and which file it runs. A TOML file, or one of those built in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

import trainonce
from trainonce.errors import UserError
from trainonce.export import TARGETS
from trainonce.names import FileName
from trainonce.pipeline.searching import Amount, budget, numbers_of
from trainonce.search.resources import quantity
from trainonce.settings import Settings, read_toml

FOLDER = Path(trainonce.__file__).parent / "devices"
"""Where the files of the built-in devices are: examples to begin with, copy and change."""
BUILT_IN = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))
"""Their names."""
LIMITS = {
    "max_macs": "macs",
    "max_params": "params",
    "max_latency": "latency",
    "max_ram": "memory",
    "max_flash": "size",
}
"""The resource of each limit of a device file."""


class Device(Settings):
    """A device: the target that it runs and the most of everything that its network may take."""

    name: FileName
    """What it is called; in a file the file's name by default."""
    about: str = ""
    """What it is, in a line."""
    target: str
    """What is exported to, of `trainonce.export.TARGETS`."""
    max_macs: Amount | None = None
    """Such as 10M."""
    max_params: Amount | None = None
    """Such as 3M."""
    max_flash: Amount | None = None
    """Most bytes of the exported files, such as 512KB: nothing is added for the runtime or the program."""
    max_ram: Amount | None = None
    """Most bytes of the activations that are live at once for one image, in the numbers of the target."""
    max_latency: Amount | None = None
    """Such as 20ms, as the latency table says."""
    latency: str | None = None
    """A latency table: a file, from the device file's folder on, or a name in RUN/latency. Default: the only one
    there."""
    finetune_epochs: int | None = Field(None, ge=0, le=10_000)
    """Epochs that its network is trained further; None for what the call says."""
    max_loss: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Points of top-1 that float16 and int8 may lose."""

    @field_validator("target")
    @classmethod
    def _check_target(cls, value: str) -> str:
        if value not in TARGETS:
            raise ValueError(f"is no target; the targets are {', '.join(TARGETS)}")
        return value

    @field_validator(*LIMITS, mode="before")
    @classmethod
    def _check_amount(cls, value: Any, info: Any) -> Any:
        if value is not None:
            try:
                quantity(LIMITS[info.field_name], str(value), said="it")
            except UserError as error:
                raise ValueError(str(error)) from error
        return value

    @property
    def numbers(self) -> str:
        """The numbers that the target computes in."""
        return numbers_of(self.target)

    def budget(self) -> dict[str, Amount]:
        """The limits, by resource."""
        return budget(self.max_macs, self.max_params, self.max_latency, self.max_ram, self.max_flash)


def load_device(name_or_path: str | Path) -> Device:
    """The built-in device of that name, or the one in a TOML file.

    Raises `UserError` that names the built-in devices, or the file and key that are wrong.
    """
    text = str(name_or_path)
    if text in BUILT_IN:
        path = FOLDER / f"{text}.toml"
    elif text.endswith(".toml"):
        path = Path(text)
    else:
        raise UserError(f"no device {text!r}; those built in are {', '.join(BUILT_IN)}, or name a .toml file")
    device = Device.parse({"name": path.stem, **read_toml(path, "device")}, where=str(path))
    beside = path.parent / device.latency if device.latency else path
    return device.model_copy(update={"latency": str(beside)}) if device.latency and beside.is_file() else device


def load_devices(names: Sequence[str | Path | Device]) -> list[Device]:
    """Devices, in order. Raises `UserError` as `load_device`, where none is named and where two have one name."""
    devices = [one if isinstance(one, Device) else load_device(one) for one in names]
    if not devices:
        raise UserError(f"name a device: one of those built in, {', '.join(BUILT_IN)}, or a .toml file")
    seen: set[str] = set()
    for device in devices:
        if device.name in seen:
            raise UserError(f"two devices are called {device.name}: give one of them another name")
        seen.add(device.name)
    return devices
