"""A supernet whose subnets are written."""

import pytest
import torch
from tests.conftest import MakeNet

from trainonce.models import MobileNetV3


@pytest.fixture(scope="module")
def net(make_net: MakeNet) -> MobileNetV3:
    """A supernet with resolutions to choose and statistics and transforms unlike a fresh one's."""
    made = make_net(seed=2, resolutions=(6, 8)).eval()
    generator = torch.Generator().manual_seed(3)
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    return made
