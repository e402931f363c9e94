"""The directory of a subnet, in a form that the Hugging Face ecosystem reads too.

config.json         the network's sizes, classes, preprocessing, scores, and where it comes from
model.safetensors   its weights
model.py            the module of its kind of network, which builds and loads it
README.md           a model card, see `trainonce.subnets.card`; a person may edit it
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from trainonce.cost.memory import WEIGHTS_METADATA
from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.files import is_there, partial_directory, put_in_place, read_bytes, standing, write_synced
from trainonce.models import Supernet
from trainonce.nn.kinds import read_spec, source_of, spec_of, written
from trainonce.nn.loading import FORMAT
from trainonce.records import read_document, say_unchecked, to_json
from trainonce.space import Architecture
from trainonce.subnets.card import model_card
from trainonce.subnets.description import Preprocessing, SubnetDescription

CONFIG, WEIGHTS, MODEL, CARD = FILES = ("config.json", "model.safetensors", "model.py", "README.md")
"""The files of a subnet's directory."""
EARLIER_CONFIG = "subnet.json"
REPLACED = {*FILES, EARLIER_CONFIG, "weights.safetensors", "export", "__pycache__"}
"""What may be removed where a subnet is replaced: its files, an earlier format's, exports of the old weights, and what
Python leaves beside model.py."""

# What can be raised by building and filling a network from values that are not what they claim to be.
_MISFITS = (
    *(KeyError, IndexError, TypeError, ValueError, ArithmeticError),
    *(AttributeError, RuntimeError, SafetensorError),
)


def describe_subnet(net: Supernet, arch: Architecture, data: DataSet) -> SubnetDescription:
    """What `config.json` says of the network itself: sizes, cost, classes, preprocessing."""
    cost = net.cost_of(arch)
    spec = net.describe(arch)
    return SubnetDescription(
        format=FORMAT,
        library_name="trainonce",
        model_type=f"trainonce-{net.family.replace('_', '-')}",
        architecture=str(arch),
        choices=dict(arch),
        macs=cost.macs,
        params=cost.params,
        network=written(spec),
        classes=list(data.class_names),
        preprocessing=Preprocessing.read(
            {
                "resolution": spec.resolution,
                "channels": spec.in_channels,
                "layout": Preprocessing.model_fields["layout"].default,
                "mean": list(data.mean),
                "std": list(data.std),
                "image_size": data.image_size,
            }
            | ({"interpolation": data.source.interpolation} if data.source.interpolation else {}),
            where="the images",
        ),
    )


def check_place(path: str | Path) -> None:
    """Raise `UserError` where something else than a subnet is there, or lies in one: that is never replaced."""
    path = Path(path)
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if path.exists() and _format_of(path) is None and not (path.is_dir() and not names):
        raise UserError(f"{path.resolve()} is there already and is not a subnet: name another directory")
    for name in names:
        if name not in REPLACED:
            raise UserError(
                f"{path.resolve()} also holds {name}, which is not part of a subnet: move it, or name another directory"
            )


def _format_of(path: Path) -> str | None:
    """The format that a directory says a subnet in it has, this or an earlier one; None for anything else."""
    for name in (CONFIG, EARLIER_CONFIG):
        try:
            named = json.loads((path / name).read_bytes()).get("format")
        except (OSError, ValueError, RecursionError, AttributeError):
            continue
        if isinstance(named, str) and named.startswith("trainonce-subnet-"):
            return named
    return None


def write_subnet(path: str | Path, network: nn.Module, description: SubnetDescription) -> None:
    """Write a subnet's directory, whole or not at all, replacing one that is there with its exports.

    Raises `UserError` where something else than a subnet is there or where the description is none, and `RunError`
    where the disk refuses.
    """
    path = Path(path).resolve()
    check_place(path)
    try:
        _check_writable(description)
    except _MISFITS as error:
        raise UserError(f"{path} is not written: what describes the subnet is not consistent: {error}") from error
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    contents = {
        WEIGHTS: tensors_to_bytes(state, metadata=WEIGHTS_METADATA),
        MODEL: source_of(spec_of(network)),
    }
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    described = description | {"format": FORMAT, "sha256": sums}
    contents[CONFIG], contents[CARD] = to_json(described.to_json()), model_card(described).encode()
    try:
        with partial_directory(path) as partial:
            check_place(path)  # again: another writer may have been here
            for name, content in contents.items():
                write_synced(partial / name, content)
            put_in_place(partial, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def read_subnet(path: str | Path) -> tuple[nn.Module, SubnetDescription]:
    """The network, in evaluation mode on the CPU, and the description of a subnet's directory.

    The directory's own model.py is compared with its checksum and never executed. Raises `UserError` that says what
    is missing, foreign or damaged.
    """
    path = standing(Path(path))
    if not (path / CONFIG).exists() and (path / EARLIER_CONFIG).exists():
        raise UserError(f"{path} holds a subnet in an earlier format: take it out again with `trainonce extract`")
    if not is_there(path / CONFIG):
        raise UserError(_why_none(path))
    values, checked = read_document(path / CONFIG)
    if values.get("format") != FORMAT:
        raise UserError(f"{path} is not a subnet of this format ({FORMAT})")
    if not checked:
        say_unchecked(path / CONFIG)
    description = SubnetDescription.read(values, where=f"{path} is not consistent as a subnet")
    try:
        content = _checked(path, WEIGHTS, description)
        _checked(path, MODEL, description)
        with torch.device("meta"):  # a damaged size must not fill the memory
            network = read_spec(description.network, beside=path).build().eval()
        _check_writable(description)
        network.load_state_dict(_fitting(tensors_from_bytes(content), network), assign=True)
        _check_fit(description, network)
    except UserError:
        raise
    except _MISFITS as error:
        raise UserError(f"{path} is not consistent as a subnet: {error}") from error
    return network.eval(), description


def _why_none(path: Path) -> str:
    """Why a path is no subnet's directory, in a sentence that says what is."""
    if not path.is_dir():
        state = "is a file, and no subnet's directory" if path.exists() else "does not exist"
        return f"{path} {state}: name a directory that `trainonce extract` wrote"
    if not is_there(path / "run.json"):
        return f"{path} is no subnet's directory (there is no {CONFIG} in it): name one that `trainonce extract` wrote"
    there = sorted(place.parent for depth in ("*", "*/*") for place in path.glob(f"{depth}/{CONFIG}"))
    named = f"name its subnet {there[0]}, or take out another" if there else "take a subnet out of it"
    return f"{path} is a run, and no subnet's directory: {named} with `trainonce extract {path}`"


def _checked(path: Path, name: str, description: SubnetDescription) -> bytes:
    content = read_bytes(path / name)
    if hashlib.sha256(content).hexdigest() != (description.sha256 or {})[name]:
        raise UserError(f"{path / name} is damaged: its checksum is not the recorded one")
    return content


def _fitting(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights, aligned as torch aligns them, each of the type that the network has there."""
    for name, tensor in network.state_dict().items():
        if name in weights and weights[name].dtype != tensor.dtype:
            raise ValueError(f"{name} is {weights[name].dtype} and not {tensor.dtype}")
    return {name: tensor.clone() for name, tensor in weights.items()}


@torch.no_grad()
def _check_fit(description: SubnetDescription, network: nn.Module) -> None:
    """Raise `ValueError`, or what comes of the attempt, where the description is not of this network."""
    spec, given = spec_of(network), description.preprocessing
    if (given.resolution, given.channels) != (spec.resolution, spec.in_channels):
        raise ValueError("its preprocessing is of another size than its network")
    shape = (given.channels, given.resolution, given.resolution)
    try:
        logits = network(torch.empty(0, *shape))  # whatever the sizes are, no images take no memory
    except RuntimeError:  # a kind of network of a person's own may need an image: one without numbers, which is slow
        with torch.device("meta"):
            logits = spec.build().eval()(torch.empty(1, *shape))
    if logits.shape[1] != len(description.classes):
        raise ValueError("its classes are not one name for each output")


def _check_writable(description: SubnetDescription) -> None:
    """Raise `ValueError`, or what comes of the attempt, where the description cannot be written."""
    to_json(description.to_json())
    model_card(description).encode()


def verify_subnet(path: str | Path, network: nn.Module) -> None:
    """Reload a subnet just written and compare its output with the network's, to the last bit, on random images.

    Raises `RunError` where they differ.
    """
    path = Path(path)
    reloaded, _ = read_subnet(path)
    spec = spec_of(reloaded)
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randn(4, spec.in_channels, spec.resolution, spec.resolution, generator=generator)
    with torch.inference_mode():
        if not torch.equal(network.cpu().eval()(x_BCHW), reloaded(x_BCHW)):
            raise RunError(f"the subnet reloaded from {path} computes something else than the one written")
