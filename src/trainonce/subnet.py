"""A subnet taken out: a directory that loads with torch and safetensors alone.

subnet.json           the network's sizes, classes, preprocessing, scores, and where it comes from
weights.safetensors   its weights
model.py              a copy of `trainonce.nn.plain`, which builds and loads it
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.files import read_json, sync_directory, to_json, write_synced
from trainonce.models import Supernet
from trainonce.nn import plain as plain_module
from trainonce.nn.plain import NetworkSpec, PlainNetwork
from trainonce.space import Architecture

FORMAT = "trainonce-subnet-1"

README = """# A network that needs only torch and safetensors

    import sys
    sys.path.insert(0, "path/of/this/directory")
    from model import load

    network = load("path/of/this/directory")   # in evaluation mode, on the CPU
    logits = network(images)                   # see below for what images are

`images` are {layout}, with {channels} channel(s),
mean {mean} and std {std}; another size is resized to {resolution} x {resolution}.
Output k is the logit of class k in this list: {classes}.

Everything else (scores, cost, how it was trained) is in subnet.json.
"""


def describe_subnet(net: Supernet, arch: Architecture, data: DataSet) -> dict[str, Any]:
    """What `subnet.json` says of the network itself: sizes, cost, classes, preprocessing."""
    cost = net.cost_of(arch)
    spec = net.describe(arch)
    return {
        "format": FORMAT,
        "architecture": str(arch),
        "choices": dict(arch),
        "macs": cost.macs,
        "params": cost.params,
        "network": spec.to_json(),
        "classes": list(data.class_names),
        "preprocessing": {
            "resolution": spec.resolution,
            "channels": spec.in_channels,
            "layout": "float32 [batch, channels, height, width], (pixel / 255 - mean) / std",
            "mean": list(data.mean),
            "std": list(data.std),
        },
    }


def write_subnet(path: Path, network: PlainNetwork, description: dict[str, Any]) -> None:
    """Write a subnet's directory, whole or not at all, replacing one that is there.

    Raises `UserError` where something else than a subnet is there, and `RunError` where the disk refuses.
    """
    path = path.resolve()
    if path.exists() and not (path / "subnet.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} is there already and is not a subnet: name another directory")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    contents = {
        "weights.safetensors": tensors_to_bytes(state),
        "model.py": Path(plain_module.__file__).read_bytes(),
        "README.md": README.format(classes=", ".join(description["classes"]), **description["preprocessing"]).encode(),
    }
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents["subnet.json"] = to_json({**description, "sha256": sums})
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_synced(partial / name, content)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def read_subnet(path: Path) -> tuple[PlainNetwork, dict[str, Any]]:
    """The network, in evaluation mode, and the description of a subnet's directory.

    Raises `UserError` that says what is missing, foreign or damaged.
    """
    description = read_json(path / "subnet.json")
    if description.get("format") != FORMAT:
        raise UserError(f"{path} is not a subnet of this format ({FORMAT})")
    try:
        content = (path / "weights.safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != description["sha256"]["weights.safetensors"]:
            raise UserError(f"{path / 'weights.safetensors'} is damaged: its checksum is not the recorded one")
        with torch.device("meta"):  # a damaged size must not fill the memory
            network = PlainNetwork(NetworkSpec.from_json(description["network"]))
        weights = {name: tensor.clone() for name, tensor in tensors_from_bytes(content).items()}
        network.load_state_dict(weights, assign=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path / 'weights.safetensors'}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} does not hold together as a subnet: {error}") from error
    return network.eval(), description


def verify_subnet(path: Path, network: PlainNetwork) -> None:
    """Reload a subnet just written and compare its output with the network's, to the last bit, on random images.

    Raises `RunError` where they differ.
    """
    reloaded, _ = read_subnet(path)
    spec = reloaded.spec
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randn(4, spec.in_channels, spec.resolution, spec.resolution, generator=generator)
    with torch.inference_mode():
        if not torch.equal(network.cpu().eval()(x_BCHW), reloaded(x_BCHW)):
            raise RunError(f"the subnet reloaded from {path} computes something else than the one written")
