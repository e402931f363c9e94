"""An export target that takes no time: the weights as they are, computed by torch."""

from collections.abc import Mapping

import torch
from safetensors import safe_open
from safetensors.torch import load, save

from trainonce.export import Target
from trainonce.export.description import KEY, FileDescription, Opened, Written
from trainonce.export.reference import Reference
from trainonce.nn.kinds import read_spec

FILE = "model.bin"


def _write(reference: Reference, _max_loss: float) -> Written:
    return Written(files={FILE: save(reference.network.state_dict(), metadata={KEY: reference.file.to_text()})})


def _open(files: Mapping[str, bytes], _threads: int, where: str) -> Opened:
    with safe_open(where, framework="pt") as there:
        description = FileDescription.from_text(there.metadata()[KEY], where=where)
    network = read_spec(description.network, beside=where).build().eval()
    network.load_state_dict(load(files[FILE]))
    return Opened(description=description, run=torch.inference_mode()(network))


PLAIN = Target(name="plain", about="weights alone", files=(FILE,), write=_write, open=_open)
