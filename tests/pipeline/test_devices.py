"""Devices: what a file may say, which are built in, and a sentence for what cannot be."""

from pathlib import Path

import pytest

from trainonce.errors import UserError
from trainonce.export import TARGETS
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.pipeline.devices import BUILT_IN, Device, load_device, load_devices
from trainonce.pipeline.searching import problem_of
from trainonce.space import derived_rng


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


def test_those_built_in_take_different_networks_of_a_small_supernet() -> None:
    """Of a CIFAR-10 supernet, its largest subnets within each one's limits; the last two have room for all of them."""
    pytest.importorskip("onnx")
    settings = MobileNetV3Settings.for_images(image_size=32, in_channels=3, num_classes=10, geometry="light")
    net, rng = MobileNetV3(settings), derived_rng("devices")
    archs = [net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(150))]
    largest = {}
    for name in BUILT_IN:
        device = load_device(name)
        problem = problem_of(net, device.budget(), None, target=device.target)
        within = [arch for arch in archs if problem.feasible(arch)]
        assert len(within) > 5, f"{name} has too little room"
        largest[name] = max(within, key=lambda arch: net.cost(arch).macs)
    assert len(set(largest.values())) == 5
    assert largest["desktop"] == largest["server"] == net.space.largest()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("target = ", r"mine\.toml is not a TOML file"),
        ('max_macs = "3M"', r"mine\.toml: the key 'target' is missing"),
        ('target = "onyx"', r"mine\.toml: target: is no target; the targets are onnx, "),
        (
            'target = "onnx"\nmax_flash = "much"',
            r"mine\.toml: max_flash: it takes a positive number, perhaps with a unit, such as 10MB",
        ),
        ('target = "onnx"\nmax_rams = 3', r"mine\.toml: unknown key 'max_rams'; the valid keys are .*max_ram"),
        ('target = "onnx"\nname = "a/b"', r"mine\.toml: name: a name becomes part of a path"),
        ('target = "onnx"\nmax_macs = true', r"mine\.toml: max_macs: it takes a positive number"),
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
