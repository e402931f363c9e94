"""Loading a subnet's directory with torch and safetensors: the end of the `model.py` that lies in each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

FORMAT = "trainonce-subnet-2"
"""What `config.json` says where a directory is a subnet as `load_as` reads it."""


def load_as(read_spec: Callable[[dict[str, Any]], Any], directory: str | Path) -> nn.Module:
    """The network of a directory with `config.json` and `model.safetensors`, in evaluation mode, on the CPU.

    `read_spec` makes a spec of the network's values. Raises `ValueError` where the directory holds something else.
    """
    directory = Path(directory)
    description = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{directory} is not a subnet of this format ({FORMAT})")
    sizes = {key: value for key, value in description["network"].items() if key != "kind"}
    with torch.device("meta"):
        network: nn.Module = read_spec(sizes).build()
    # Copies, because weights that lie in the file's map are not aligned, and the last bits depend on that.
    weights = {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}
    network.load_state_dict(weights, assign=True)
    return network.eval()
