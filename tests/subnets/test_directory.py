"""A subnet taken out: the same network to the last bit, without trainonce; damage is a sentence."""

import hashlib
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.conftest import MakeData, MakeNet
from tests.support.dying import deaths
from tests.support.flat import FlatSpec
from tests.support.subnets import FILES, SCORE
from tests.support.warm_python import run_python
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainonce import files
from trainonce.data import Split
from trainonce.errors import RunError, UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.nn.kinds import written
from trainonce.nn.loading import load_as
from trainonce.nn.plain import NetworkSpec
from trainonce.records import read_json
from trainonce.space import Architecture, derived_rng
from trainonce.subnets import describe_subnet, directory, read_subnet, write_subnet


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(4))


def architectures(net: MobileNetV3) -> list[Architecture]:
    rng = derived_rng("test subnets")
    return [net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(3))]


WITHOUT_TRAINONCE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "trainonce":
            raise ImportError("trainonce is not to be had here")

sys.meta_path.insert(0, Blocker())
try:
    import trainonce
except ImportError as error:
    assert str(error) == "trainonce is not to be had here"
else:
    raise SystemExit("trainonce can be imported: this proves nothing")

import importlib.util
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
folder = Path(sys.argv[1])
images = load_file(folder / "images.safetensors")["images"]
outputs = {}
for number, directory in enumerate(sorted(folder.glob("subnet-*"))):
    spec = importlib.util.spec_from_file_location(f"model{number}", directory / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    network = module.load(directory)
    assert not network.training
    with torch.inference_mode():
        outputs[directory.name] = network(images).clone()
save_file(outputs, folder / "outputs.safetensors")
assert not [name for name in sys.modules if name.partition(".")[0] == "trainonce"]
"""


def test_it_loads_without_trainonce_to_the_last_bit(
    net: MobileNetV3, images: Tensor, make_data: MakeData, tmp_path: Path
) -> None:
    evaluator = Evaluator(make_data(), settings=EvaluateSettings(calibration_images=20))
    expected: dict[str, Tensor] = {}
    with torch.inference_mode():
        for number, arch in enumerate(architectures(net)):
            for recalibrated in (False, True):
                plain = evaluator.recalibrated(net, arch) if recalibrated else net.extract(arch)
                name = f"subnet-{number}-{'own' if recalibrated else 'cut'}"
                write_subnet(tmp_path / name, plain, describe_subnet(net, arch, make_data()))
                expected[name] = plain(images) if recalibrated else net(images, arch)
    save_file({"images": images}, tmp_path / "images.safetensors")
    subprocess.run([sys.executable, "-c", WITHOUT_TRAINONCE, str(tmp_path)], check=True, timeout=120)
    found = load_file(tmp_path / "outputs.safetensors")
    assert found.keys() == expected.keys()
    for name, output in expected.items():
        assert torch.equal(found[name], output), name
    assert not torch.equal(expected["subnet-0-cut"], expected["subnet-0-own"])  # the comparison can tell


def test_a_kind_that_cannot_be_run_on_no_images(net: MobileNetV3, make_data: MakeData, tmp_path: Path) -> None:
    """It is read too, and its classes are counted."""
    spec, described = FlatSpec(resolution=6, in_channels=1, num_classes=3), net.space.smallest()
    network = spec.build().eval()
    description = describe_subnet(net, described, make_data()) | {"network": written(spec)}
    write_subnet(tmp_path / "flat", network, description)
    x_BCHW = torch.randn(2, 1, 6, 6)
    with torch.inference_mode():
        assert torch.equal(read_subnet(tmp_path / "flat")[0](x_BCHW), network(x_BCHW))
    write_subnet(tmp_path / "four", network, description | {"classes": list("abcd")})
    with pytest.raises(UserError, match="its classes are not one name for each output"):
        read_subnet(tmp_path / "four")


def test_reading_loads_no_compiler(net: MobileNetV3, make_data: MakeData, tmp_path: Path) -> None:
    """Torch's takes seconds to import, and whoever runs a network without numbers needs it."""
    arch = net.space.smallest()
    write_subnet(tmp_path / "subnet", net.extract(arch), describe_subnet(net, arch, make_data()))
    code = "import sys; from trainonce.subnets import read_subnet; read_subnet(sys.argv[1]); print(*sys.modules)"
    done = run_python(code, tmp_path / "subnet")
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "trainonce.subnets.directory" in loaded
    assert "torch._dynamo" not in loaded


class TestDirectory:
    def test_contents(self, net: MobileNetV3, images: Tensor, make_data: MakeData, tmp_path: Path) -> None:
        arch, data = net.space.smallest(), make_data()
        plain = net.extract(arch)
        write_subnet(
            tmp_path / "new" / "here", plain, describe_subnet(net, arch, data) | {"scores": {"validate": SCORE}}
        )
        path = tmp_path / "new" / "here"
        assert sorted(p.name for p in path.iterdir()) == FILES
        assert [p.name for p in path.parent.iterdir()] == ["here"]
        found = read_json(path / "config.json")
        assert found["architecture"] == str(arch)
        assert found["choices"] == dict(arch)
        assert found["params"] == sum(p.numel() for p in plain.parameters())
        assert found["classes"] == ["a", "b", "c"]
        assert found["preprocessing"] == {
            "image_size": 8,
            "resolution": 6,
            "channels": 1,
            "mean": [0.4],
            "std": [0.3],
            "layout": "float32 [batch, channels, height, width], (pixel / 255 - mean) / std",
        }
        assert found["scores"] == {"validate": SCORE}
        for name, checksum in found["sha256"].items():
            assert hashlib.sha256((path / name).read_bytes()).hexdigest() == checksum
        assert set(found["sha256"]) == {"model.py", "model.safetensors"}  # a person may edit the card
        weights = load_file(path / "model.safetensors")
        assert all(torch.equal(weights[k], v) for k, v in plain.state_dict().items())
        with safe_open(path / "model.safetensors", framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
        network, description = read_subnet(path)
        assert description.to_json() == found
        with torch.inference_mode():
            assert torch.equal(network(images), net(images, arch))

    def test_a_subnet_is_replaced_whole(self, net: MobileNetV3, make_data: MakeData, tmp_path: Path) -> None:
        path = tmp_path / "subnet"
        for arch in (net.space.largest(), net.space.smallest()):
            write_subnet(path, net.extract(arch), describe_subnet(net, arch, make_data()))
        assert read_subnet(path)[1].architecture == str(net.space.smallest())
        assert sorted(p.name for p in path.iterdir()) == FILES

    def test_exports_go_with_the_weights_they_are_of(
        self, net: MobileNetV3, make_data: MakeData, tmp_path: Path
    ) -> None:
        path, arch = tmp_path / "subnet", net.space.smallest()
        write_subnet(path, net.extract(arch), describe_subnet(net, arch, make_data()))
        for name in ("export/onnx/model.onnx", "__pycache__/model.cpython-311.pyc", "weights.safetensors"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"of the old weights")
        write_subnet(path, net.extract(arch), describe_subnet(net, arch, make_data()))
        assert sorted(p.name for p in path.iterdir()) == FILES

    @pytest.mark.parametrize("name", [".git", "thesis.tex", "exports"])
    def test_what_lies_in_a_subnet_is_not_removed(
        self, net: MobileNetV3, make_data: MakeData, tmp_path: Path, name: str
    ) -> None:
        path, arch = tmp_path / "subnet", net.space.smallest()
        write_subnet(path, net.extract(arch), describe_subnet(net, arch, make_data()))
        (path / name).mkdir()
        (path / name / "notes").write_text("irreplaceable")
        with pytest.raises(UserError, match=rf"subnet also holds {name}, which is not part of a subnet: move it, or"):
            write_subnet(path, net.extract(arch), describe_subnet(net, arch, make_data()))
        assert (path / name / "notes").read_text() == "irreplaceable"
        assert read_subnet(path)[1].architecture == str(arch)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"trained": "x"},
            {"scores": {"validate": None}},
            {"scores": {"validate": SCORE | {"loss": float("nan")}}},
            {"classes": None},
        ],
    )
    def test_a_description_that_is_none_is_not_written(
        self, net: MobileNetV3, make_data: MakeData, tmp_path: Path, wrong: dict[str, Any]
    ) -> None:
        arch = net.space.smallest()
        with pytest.raises(UserError, match="what describes the subnet is not consistent"):
            write_subnet(tmp_path / "subnet", net.extract(arch), describe_subnet(net, arch, make_data()) | wrong)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("there", ["directory", "file"])
    def test_something_else_is_never_replaced(
        self, net: MobileNetV3, make_data: MakeData, tmp_path: Path, there: str
    ) -> None:
        path, arch = tmp_path / "photos", net.space.smallest()
        if there == "directory":
            path.mkdir()
        precious = path / "holiday.jpg" if there == "directory" else path
        precious.write_text("irreplaceable")
        with pytest.raises(UserError, match="photos is there already and is not a subnet: name another directory"):
            write_subnet(path, net.extract(arch), describe_subnet(net, arch, make_data()))
        assert precious.read_text() == "irreplaceable"

    def test_the_working_directory_is_not_replaced(
        self, net: MobileNetV3, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "notes").write_text("irreplaceable")
        monkeypatch.chdir(tmp_path)
        arch = net.space.smallest()
        with pytest.raises(UserError, match="is not a subnet"):
            write_subnet(Path(), net.extract(arch), describe_subnet(net, arch, make_data()))
        assert (tmp_path / "notes").read_text() == "irreplaceable"

    def test_the_disk_refusing_leaves_the_old_one(
        self, net: MobileNetV3, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arch = net.space.smallest()
        write_subnet(tmp_path / "subnet", net.extract(arch), describe_subnet(net, arch, make_data()))

        def refuse(path: Path, content: bytes) -> None:
            path.write_bytes(content[:10])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(directory, "write_synced", refuse)
        largest = net.space.largest()
        with pytest.raises(RunError, match=r"cannot write .*subnet: No space left on device"):
            write_subnet(tmp_path / "subnet", net.extract(largest), describe_subnet(net, largest, make_data()))
        assert read_subnet(tmp_path / "subnet")[1].architecture == str(arch)
        assert [p.name for p in tmp_path.iterdir()] == ["subnet"]


class TestDying:
    @pytest.mark.parametrize("at_once", [True, False], ids=["exchanged", "renamed twice"])
    def test_a_writer_that_dies_hides_no_subnet(
        self,
        make_net: MakeNet,
        make_data: MakeData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        at_once: bool,
    ) -> None:
        """Before any of its file operations: the old subnet or the new one is whole, and is found."""
        if not at_once:
            monkeypatch.setattr(files, "exchange", lambda *_: False)
        net, data, path = make_net(depths=(1,)), make_data(), tmp_path / "subnet"
        old, new = (
            (net.extract(arch), describe_subnet(net, arch, data))
            for arch in (net.space.smallest(), net.space.largest())
        )
        found = []

        def check() -> None:
            network, description = read_subnet(path)
            found.append(description.architecture)
            assert network.spec == NetworkSpec.from_json(description.network)
            write_subnet(path, *old)
            assert list(tmp_path.iterdir()) == [path]

        write_subnet(path, *old)
        assert deaths(lambda: write_subnet(path, *new), check) > 20
        assert found[0] == old[1].architecture
        assert found[-1] == new[1].architecture
        assert set(found) == {found[0], found[-1]}


@pytest.mark.long
def test_two_hundred_subnets_of_the_papers_geometry(make_data: MakeData, tmp_path: Path) -> None:
    """Bound, extracted, and reloaded by the file that travels with the weights: the same to the last bit."""
    net, rng = MobileNetV3(MobileNetV3Settings(num_classes=100), seed=3), random.Random(4)
    coloured = Split(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8))
    classes = tuple(f"class {number}" for number in range(100))
    data = make_data(channels=3, train=8, class_names=classes)
    data = replace(data, train=coloured, calibrate=coloured, validate=coloured, test=coloured)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for _ in range(20):  # statistics that let the images through
            net.train()(x, net.space.sample(rng))
    net.eval()
    seen = set()
    for _ in range(200):
        arch = net.space.sample(rng)
        network = net.extract(arch)
        write_subnet(tmp_path / "subnet", network, describe_subnet(net, arch, data))
        with torch.no_grad():
            outputs = [net.bind(arch)(x), network(x), load_as(NetworkSpec.from_json, tmp_path / "subnet")(x)]
            with FlopCounterMode(display=False) as counter:
                network(x)
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])
        assert net.cost_of(arch).macs * 2 * len(x) == counter.get_total_flops()
        assert net.cost_of(arch).params == sum(parameter.numel() for parameter in network.parameters())
        seen.add(tuple(outputs[0].flatten().tolist()))
    assert len(seen) == 200, "every subnet computes something of its own"
