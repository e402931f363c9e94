"""A subnet taken out: the same network to the last bit, without trainonce; damage is a sentence."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.support.dying import deaths
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainonce import files
from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.nn.plain import NetworkSpec, PlainNetwork, load
from trainonce.pipeline.hub import files_to_push
from trainonce.records import read_json, to_json
from trainonce.space import Architecture, derived_rng
from trainonce.subnets import describe_subnet, directory, read_subnet, write_subnet
from trainonce.subnets.card import model_card

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
FILES = ["README.md", "config.json", "model.py", "model.safetensors"]
SCORE = {"top1": 12.5, "loss": 2.0, "images": 30}


@pytest.fixture(scope="module")
def net(make_net: MakeNet) -> MobileNetV3:
    """A supernet with resolutions to choose and statistics and transforms unlike a fresh one's."""
    made = make_net(seed=2, resolutions=(6, 8)).eval()
    generator = torch.Generator().manual_seed(3)
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    return made


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
        assert description == found
        with torch.inference_mode():
            assert torch.equal(network(images), net(images, arch))

    def test_a_subnet_is_replaced_whole(self, net: MobileNetV3, make_data: MakeData, tmp_path: Path) -> None:
        path = tmp_path / "subnet"
        for arch in (net.space.largest(), net.space.smallest()):
            write_subnet(path, net.extract(arch), describe_subnet(net, arch, make_data()))
        assert read_subnet(path)[1]["architecture"] == str(net.space.smallest())
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
        with pytest.raises(UserError, match=rf"subnet also holds {name}, which is no part of a subnet: move it, or"):
            write_subnet(path, net.extract(arch), describe_subnet(net, arch, make_data()))
        assert (path / name / "notes").read_text() == "irreplaceable"
        assert read_subnet(path)[1]["architecture"] == str(arch)

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
        with pytest.raises(UserError, match="what describes the subnet does not hold together"):
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
        assert read_subnet(tmp_path / "subnet")[1]["architecture"] == str(arch)
        assert [p.name for p in tmp_path.iterdir()] == ["subnet"]


@pytest.fixture(scope="module")
def good(net: MobileNetV3, make_data: MakeData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("subnets") / "good"
    arch = net.space.smallest()
    description: dict[str, Any] = describe_subnet(net, arch, make_data()) | {
        "recalibrated": {"calibration_images": 20},
        "scores": {"validate": SCORE, "test": SCORE},
        "trained": {
            "run": "/runs/pets",
            "data": "pets",
            "epochs": 3.0,
            "provenance": {"torch": "2.13", "device": "cpu"},
            "finetuned": {
                "before": {"validate": SCORE},
                "after": {"validate": SCORE},
                "settings": {"epochs": 1, "distill": False},
                "epoch": 1,
            },
        },
    }
    write_subnet(path, net.extract(arch), description)
    return path


def places_in(value: Any) -> list[tuple[str | int, ...]]:
    """The keys that lead to each value inside JSON values."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, one in inner for rest in places_in(one))]


def used_as_commands_do(path: Path) -> tuple[PlainNetwork, dict[str, Any]]:
    """Read a subnet; where that succeeds, what the commands make of it succeeds too."""
    network, description = read_subnet(path)
    assert model_card(description).encode()
    assert to_json(description)
    assert files_to_push(path)
    return network, description


class TestDying:
    @pytest.mark.parametrize("at_once", [True, False], ids=["exchanged", "renamed twice"])
    def test_a_writer_that_dies_hides_no_subnet(
        self,
        net: MobileNetV3,
        make_data: MakeData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        at_once: bool,
    ) -> None:
        """Before any of its file operations: the old subnet or the new one is whole, and is found."""
        if not at_once:
            monkeypatch.setattr(files, "exchange", lambda *_: False)
        data, path = make_data(), tmp_path / "subnet"
        old, new = (
            (net.extract(arch), describe_subnet(net, arch, data))
            for arch in (net.space.smallest(), net.space.largest())
        )
        found = []

        def check() -> None:
            network, description = read_subnet(path)
            found.append(description["architecture"])
            assert network.spec == NetworkSpec.from_json(description["network"])
            write_subnet(path, *old)
            assert list(tmp_path.iterdir()) == [path]

        write_subnet(path, *old)
        assert deaths(lambda: write_subnet(path, *new), check) > 20
        assert found[0] == old[1]["architecture"]
        assert found[-1] == new[1]["architecture"]
        assert set(found) == {found[0], found[-1]}


@pytest.mark.filterwarnings("ignore::trainonce.records.UncheckedWarning")
class TestDamaged:
    @pytest.fixture
    def path(self, good: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(good, tmp_path / "subnet"))

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.py"])
    def test_a_missing_file(self, path: Path, name: str) -> None:
        (path / name).unlink()
        with pytest.raises(UserError, match=rf"{name}(: No such file| does not exist)"):
            read_subnet(path)

    @pytest.mark.parametrize("how", ["flipped", "truncated", "emptied"])
    def test_changed_weights(self, path: Path, how: str) -> None:
        file = path / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        changed = {"flipped": bytes(content), "truncated": bytes(content[:-4]), "emptied": b""}
        file.write_bytes(changed[how])
        with pytest.raises(UserError, match=r"model.safetensors is damaged: its checksum is not the recorded one"):
            read_subnet(path)

    def test_weights_of_another_subnet(self, path: Path, net: MobileNetV3) -> None:
        file = path / "model.safetensors"
        save_file({k: v.contiguous() for k, v in net.extract(net.space.largest()).state_dict().items()}, file)
        self.rewrite(path, sha256={"model.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()})
        with pytest.raises(UserError, match="does not hold together as a subnet"):
            read_subnet(path)

    @staticmethod
    def rewrite(path: Path, **changes: Any) -> None:
        found = read_json(path / "config.json")
        if "sha256" in changes and isinstance(changes["sha256"], dict):
            changes["sha256"] = {**found["sha256"], **changes["sha256"]}
        (path / "config.json").write_text(json.dumps({**found, **changes}))

    @pytest.mark.parametrize("changes", [{"format": "other-subnet-2"}, {"format": None}])
    def test_a_foreign_format(self, path: Path, changes: dict[str, Any]) -> None:
        self.rewrite(path, **changes)
        with pytest.raises(UserError, match=r"is not a subnet of this format \(trainonce-subnet-2\)"):
            read_subnet(path)

    @pytest.mark.parametrize(
        "changes",
        [
            {"network": None},
            {"network": {}},
            {"network": {"blocks": 3}},
            {"sha256": None},
            {"sha256": []},
            {"sha256": {"model.py": None}},
            {"classes": ["a", "b"]},
            {"classes": [1, 2, 3]},
            {"classes": None},
            {"preprocessing": {}},
            {"preprocessing": {"resolution": 7, "channels": 1, "mean": [0.4], "std": [0.3]}},
            {"preprocessing": {"resolution": 6, "channels": 1, "mean": [0.4, 0.4], "std": [0.3]}},
            {"preprocessing": {"resolution": 6, "channels": 1, "mean": ["x"], "std": [0.3]}},
            {"preprocessing": {"resolution": 6, "channels": 1, "mean": [0.4], "std": [0.0]}},
            {"architecture": None},
            {"macs": "many"},
            {"trained": "x"},
            {"trained": [1]},
            {"scores": [1]},
            {"scores": {"validate": 3}},
            {"scores": {"validate": {"top1": 5.0, "loss": 1.0}}},
            {"scores": {"validate": {"top1": 5.0, "loss": "low", "images": 3}}},
            {"scores": {"validate": {"top1": 5.0, "loss": float("inf"), "images": 3}}},
            {"recalibrated": True},
            {"license": float("nan")},
        ],
    )
    def test_parts_that_do_not_fit(self, path: Path, changes: dict[str, Any]) -> None:
        self.rewrite(path, **changes)
        with pytest.raises(UserError, match=r"does not hold together as a subnet|model.py is damaged"):
            read_subnet(path)

    @pytest.mark.parametrize("key", ["trained", "scores", "recalibrated"])
    def test_what_may_be_left_out(self, path: Path, key: str) -> None:
        self.rewrite(path, **{key: None})
        assert used_as_commands_do(path)[1][key] is None

    @pytest.mark.parametrize("size", [0, -8, 8.0, "8", [8]])
    def test_an_image_size_that_is_none(self, path: Path, size: object) -> None:
        given = json.loads((path / "config.json").read_text())["preprocessing"]
        self.rewrite(path, preprocessing={**given, "image_size": size})
        with pytest.raises(UserError, match="does not hold together as a subnet: its image size is"):
            read_subnet(path)

    def test_another_models_code(self, path: Path) -> None:
        with (path / "model.py").open("a") as file:
            file.write("raise SystemExit('executed')\n")
        with pytest.raises(UserError, match=r"model.py is damaged: its checksum is not the recorded one"):
            read_subnet(path)

    def test_weights_of_another_type(self, path: Path) -> None:
        file = path / "model.safetensors"
        save_file({k: v.double() if v.is_floating_point() else v for k, v in load_file(file).items()}, file)
        self.rewrite(path, sha256={"model.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()})
        with pytest.raises(UserError, match=r"does not hold together as a subnet: .* is torch.float64 and not"):
            read_subnet(path)

    @pytest.mark.parametrize("content", [{"format": "trainonce-subnet-1"}, None])
    def test_an_earlier_format(self, path: Path, content: dict[str, str] | None) -> None:
        """Read with a sentence that says what to do, and replaced by doing it."""
        network, description = read_subnet(path)
        shutil.rmtree(path)
        path.mkdir()
        (path / "subnet.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="an earlier format: take it out again with `trainonce extract`"):
            read_subnet(path)
        if content is None:
            with pytest.raises(UserError, match="is not a subnet: name another directory"):
                write_subnet(path, network, description)
            return
        write_subnet(path, network, description)
        assert sorted(p.name for p in path.iterdir()) == FILES

    def test_a_directory_of_another_library(self, path: Path) -> None:
        """Its config.json is no sign that it may be replaced."""
        network, description = read_subnet(path)
        foreign = {"model_type": "bert", "architectures": ["BertModel"]}
        (path / "config.json").write_text(json.dumps(foreign))
        for refused in (lambda: read_subnet(path), lambda: write_subnet(path, network, description)):
            with pytest.raises(UserError, match="is not a subnet"):
                refused()
        with pytest.raises(ValueError, match="is not a subnet of this format"):
            load(path)
        assert json.loads((path / "config.json").read_text()) == foreign

    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    @pytest.mark.parametrize("value", [0, -1, 7, 10**12, 2**70, 0.5, None, "8", [8]])
    @pytest.mark.parametrize("key", ["stem_channels", "final_channels", "num_classes", "mid_channels", "kernel_size"])
    def test_sizes_that_do_not_fit(self, path: Path, key: str, value: object) -> None:
        """Also absurd ones: nothing of that size is ever made."""
        network = json.loads((path / "config.json").read_text())["network"]
        (network if key in network else network["blocks"][1])[key] = value
        self.rewrite(path, network=network)
        with pytest.raises(UserError, match="does not hold together as a subnet"):
            read_subnet(path)

    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_fuzz(self, good: Path, damaged: Callable[[bytes], st.SearchStrategy[bytes]], data: st.DataObject) -> None:
        """Any bytes in config.json: a `UserError`, or a network with the weights of the file."""
        file = good / "config.json"
        before = file.read_bytes()
        file.write_bytes(data.draw(damaged(before)))
        try:
            network, _ = used_as_commands_do(good)
        except UserError:
            return
        finally:
            file.write_bytes(before)
        weights = load_file(good / "model.safetensors")
        assert network.state_dict().keys() == weights.keys()
        assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items())

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_fuzz_of_values(self, good: Path, data: st.DataObject) -> None:
        """Another value anywhere in config.json: a `UserError`, or one that every command can use."""
        file = good / "config.json"
        before = file.read_bytes()
        description = json.loads(before)
        del description["sum"]
        *way, last = data.draw(st.sampled_from(places_in(description)[1:]))
        around = description
        for key in way:
            around = around[key]
        around[last] = data.draw(st.sampled_from([None, True, "x", "\ud800", [], [1], {}, float("nan"), -1, 10**400]))
        file.write_text(json.dumps(description))
        try:
            used_as_commands_do(good)
        except UserError:
            return
        finally:
            file.write_bytes(before)

    @settings(max_examples=100, deadline=None)
    @given(data=st.data(), hidden=st.booleans())
    def test_fuzz_of_the_weights(
        self, good: Path, damaged: Callable[[bytes], st.SearchStrategy[bytes]], data: st.DataObject, hidden: bool
    ) -> None:
        """Any bytes in model.safetensors, also under a checksum that is theirs: a `UserError` or a whole network."""
        weights, config = good / "model.safetensors", good / "config.json"
        before, described = weights.read_bytes(), config.read_bytes()
        content = data.draw(damaged(before))
        weights.write_bytes(content)
        if hidden:
            self.rewrite(good, sha256={"model.safetensors": hashlib.sha256(content).hexdigest()})
        try:
            network, description = read_subnet(good)
        except UserError:
            return
        finally:
            weights.write_bytes(before)
            config.write_bytes(described)
        assert hidden or content == before
        assert network(torch.zeros(1, 1, 6, 6)).shape == (1, len(description["classes"]))


@pytest.mark.long
def test_two_hundred_subnets_of_the_papers_geometry(make_data: MakeData, tmp_path: Path) -> None:
    """Bound, extracted, and reloaded by the file that travels with the weights: the same to the last bit."""
    net, rng = MobileNetV3(MobileNetV3Settings(num_classes=100), seed=3), random.Random(4)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for _ in range(20):  # statistics that let the images through
            net.train()(x, net.space.sample(rng))
    net.eval()
    seen = set()
    for _ in range(200):
        arch = net.space.sample(rng)
        network = net.extract(arch)
        write_subnet(tmp_path / "subnet", network, describe_subnet(net, arch, make_data()))
        with torch.no_grad():
            outputs = [net.bind(arch)(x), network(x), load(tmp_path / "subnet")(x)]
            with FlopCounterMode(display=False) as counter:
                network(x)
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])
        assert net.cost_of(arch).macs * 2 * len(x) == counter.get_total_flops()
        assert net.cost_of(arch).params == sum(parameter.numel() for parameter in network.parameters())
        seen.add(tuple(outputs[0].flatten().tolist()))
    assert len(seen) == 200, "every subnet computes something of its own"
