"""Networks of timm and torchvision as supernets, where these are installed."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.support.other_libraries import imported

from trainonce.cost.macs import counted_cost
from trainonce.errors import UserError
from trainonce.models.traced import Traced, elastic, network_named

LEAST = {
    "timm": {"resnet18": 2.35, "mobilenetv3_small_100": 1.80, "efficientnet_lite0": 2.68},
    "torchvision": {"mobilenet_v2": 3.5, "squeezenet1_0": 1.25},
}
"""Millions of parameters below which the smallest subnet must come: of timm, what ModelOpt is said to reach."""
CASES = [(library, name) for library, names in LEAST.items() for name in names]


def supernet(library: str, name: str) -> tuple[torch.nn.Module, Traced]:
    module = imported(library)
    torch.manual_seed(0)
    model = module.create_model(name) if library == "timm" else module.models.get_model(name, weights=None)
    net = elastic(model.eval(), torch.zeros(2, 3, 96, 96))
    return model, net.eval()


@pytest.mark.long
@pytest.mark.parametrize(("library", "name"), CASES)
@torch.no_grad()
def test_a_network_of_another_library_is_its_largest_subnet_and_all_others_are_extracted_exactly(
    library: str, name: str
) -> None:
    model, net = supernet(library, name)
    x_BCHW, rng = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)), random.Random(0)
    for _ in range(2):
        assert torch.equal(net(x_BCHW, net.space.largest()), model(x_BCHW))
        for arch in (net.space.smallest(), *(net.space.sample(rng) for _ in range(4))):
            assert torch.equal(net(x_BCHW, arch), net.extract(arch)(x_BCHW))
            assert net.cost_of(arch) == counted_cost(net.describe(arch))
        net.sort_channels(net.space.keep_largest({"width": 1, "depth": 1}))
    assert net.network.state_dict().keys() == model.state_dict().keys()
    assert net.cost_of(net.space.smallest()).params < LEAST[library][name] * 1e6


NAMED = [
    ("timm:mobilenetv3_small_050", 224, (0.485, 0.456, 0.406)),
    ("timm:tf_efficientnet_lite0", 224, (0.5, 0.5, 0.5)),
    ("torchvision:squeezenet1_1", 224, (0.485, 0.456, 0.406)),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "size", "mean"), NAMED)
def test_networks_by_name_with_the_weights_of_a_file(
    name: str, size: int, mean: tuple[float, ...], tmp_path: Path
) -> None:
    """Also of a network for other classes than the library's own; sizes and means are those that they publish."""
    library, _, rest = name.partition(":")
    module = imported(library)
    torch.manual_seed(3)
    if library == "timm":
        model = module.create_model(rest, num_classes=7)
    else:
        model = module.models.get_model(rest, weights=None, num_classes=7)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    given = network_named(name, tmp_path / "own.safetensors")
    assert (given.image_size, given.mean, given.trained) == (size, mean, True)
    x_BCHW = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(given.network.eval()(x_BCHW), model.eval()(x_BCHW))
    assert not network_named(name).trained


@pytest.mark.long
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_network_that_a_library_lacks(library: str) -> None:
    imported(library)
    with pytest.raises(UserError, match=f"{library} has no network 'mobilenet_v33'; did you mean"):
        network_named(f"{library}:mobilenet_v33")
