"""Devices: what a file may say, which are built in, and a sentence for what cannot be."""

from pathlib import Path

import pytest

from trainonce.errors import UserError
from trainonce.export import TARGETS
from trainonce.pipeline.devices import BUILT_IN, Device, load_device, load_devices


def written(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def test_a_file_says_target_and_limits(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("{}")
    device = load_device(
        written(tmp_path, 'target = "onnx-int8"\nmax_flash = "512KB"\nmax_ram = "256KiB"\nlatency = "table.json"\n')
    )
    assert (device.name, device.numbers) == ("mine", "int8")
    assert device.budget() == {"size": "512KB", "memory": "256KiB"}
    assert device.latency == str(tmp_path / "table.json"), "from the file's folder on"
    assert load_device(written(tmp_path, 'target = "onnx"\nlatency = "laptop"\n')).latency == "laptop", (
        "one of the run's"
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_those_built_in(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert device.about
    assert device.target in TARGETS


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("target = ", r"mine\.toml is not a TOML file"),
        ('max_macs = "3M"', r"mine\.toml: the key 'target' is missing"),
        ('target = "onyx"', r"mine\.toml: target: is no target; the targets are onnx, "),
        ('target = "onnx"\nmax_flash = "much"', r"mine\.toml: max_flash: it takes a number and its unit, such as 10MB"),
        ('target = "onnx"\nmax_rams = 3', r"mine\.toml: unknown key 'max_rams'; the valid keys are .*max_ram"),
        ('target = "onnx"\nname = "a/b"', r"mine\.toml: name: a name becomes part of a path"),
        ('target = "onnx"\nmax_macs = true', r"mine\.toml: max_macs: it takes a number"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_device(written(tmp_path, text))


def test_what_is_no_device(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no device 'fridge'; those built in are browser, .*or name a \.toml file"):
        load_device("fridge")
    with pytest.raises(UserError, match=r"cannot read the device .*gone\.toml"):
        load_device(tmp_path / "gone.toml")
    with pytest.raises(UserError, match="name a device: one of those built in, browser"):
        load_devices([])
    with pytest.raises(UserError, match="two devices are called server: give one of them another name"):
        load_devices(["server", Device(name="phone", target="onnx"), written(tmp_path, 'target = "onnx"', "server")])
