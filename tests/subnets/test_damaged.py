"""A subnet whose files are damaged is a sentence, or is used as it was."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.conftest import MakeData
from tests.support.subnets import FILES, SCORE

from trainonce.errors import UserError
from trainonce.models import MobileNetV3
from trainonce.nn.loading import load_as
from trainonce.nn.plain import NetworkSpec, PlainNetwork
from trainonce.pipeline.hub import files_to_push
from trainonce.records import read_json, to_json
from trainonce.subnets import describe_subnet, read_subnet, write_subnet
from trainonce.subnets.card import model_card


@pytest.fixture(scope="module")
def good(net: MobileNetV3, make_data: MakeData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("subnets") / "good"
    arch = net.space.smallest()
    description = describe_subnet(net, arch, make_data()) | {
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
    assert to_json(description.to_json())
    assert files_to_push(path)
    assert isinstance(network, PlainNetwork)
    return network, description.to_json()


@pytest.mark.filterwarnings("ignore::trainonce.records.UncheckedWarning")
class TestDamaged:
    @pytest.fixture
    def path(self, good: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(good, tmp_path / "subnet"))

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.py"])
    def test_a_missing_file(self, path: Path, name: str) -> None:
        (path / name).unlink()
        with pytest.raises(UserError, match=rf"{name}(: No such file| does not exist| in it)"):
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
        with pytest.raises(UserError, match="is not consistent as a subnet"):
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
        with pytest.raises(UserError, match=r"is not consistent as a subnet|model.py is damaged"):
            read_subnet(path)

    @pytest.mark.parametrize("key", ["trained", "scores", "recalibrated"])
    def test_what_may_be_left_out(self, path: Path, key: str) -> None:
        self.rewrite(path, **{key: None})
        assert used_as_commands_do(path)[1][key] is None

    @pytest.mark.parametrize("size", [0, -8, 8.0, "8", [8]])
    def test_an_image_size_that_is_none(self, path: Path, size: object) -> None:
        given = json.loads((path / "config.json").read_text())["preprocessing"]
        self.rewrite(path, preprocessing={**given, "image_size": size})
        with pytest.raises(UserError, match="is not consistent as a subnet: preprocessing: its 'image_size' is"):
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
        with pytest.raises(UserError, match=r"is not consistent as a subnet: .* is torch.float64 and not"):
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
            load_as(NetworkSpec.from_json, path)
        assert json.loads((path / "config.json").read_text()) == foreign

    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    @pytest.mark.parametrize("value", [0, -1, 7, 10**12, 2**70, 0.5, None, "8", [8]])
    @pytest.mark.parametrize("key", ["stem_channels", "final_channels", "num_classes", "mid_channels", "kernel_size"])
    def test_sizes_that_do_not_fit(self, path: Path, key: str, value: object) -> None:
        """Also absurd ones: nothing of that size is ever made."""
        network = json.loads((path / "config.json").read_text())["network"]
        (network if key in network else network["blocks"][1])[key] = value
        self.rewrite(path, network=network)
        with pytest.raises(UserError, match="is not consistent as a subnet"):
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
        assert network(torch.zeros(1, 1, 6, 6)).shape == (1, len(description.classes))
