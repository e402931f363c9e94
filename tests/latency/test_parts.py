"""The parts of a space: all of them, against every subnet there is; and parts that make up the network."""

from collections.abc import Callable

import pytest
import torch
from tests.support.small_resnet import SmallResNet, SmallSettings

from trainonce.errors import UserError
from trainonce.latency.parts import part_modules, part_names, representatives, sized_network
from trainonce.latency.runtimes import with_random_weights
from trainonce.models import MobileNetV3, MobileNetV3Settings, ResNet, ResNetSettings
from trainonce.space import Architecture, SearchSpace, derived_rng

MakeNet = Callable[..., MobileNetV3]


def every_architecture(space: SearchSpace) -> list[Architecture]:
    """All of a space, choice by choice."""
    partial: list[dict[str, int]] = [{}]
    for choice in space.choices:
        partial = [
            {**values, choice.name: value} if value is not None else values
            for values in partial
            for value in (choice.open_values(values.get(choice.parent or "")) or (None,))
        ]
    return [Architecture(tuple(values.items())) for values in partial]


def test_every_part_of_every_subnet_is_there(make_net: MakeNet) -> None:
    net = make_net(depths=(1, 2), kernel_sizes=(3,), expand_ratios=(3, 4), resolutions=(8, 12), strides=(1, 2, 1, 2, 1))
    small = net.space.restrict({"stage4.depth": [1], "stage5.depth": [1]})
    every = every_architecture(small)
    assert len(every) == small.count()
    found = {name for arch in every for name in part_names(net.describe(arch))}
    assert found <= set(representatives(net))
    rest = net.space.restrict({"stage1.depth": [1], "stage2.depth": [1], "stage3.depth": [1]})
    found |= {name for arch in every_architecture(rest) for name in part_names(net.describe(arch))}
    assert found == set(representatives(net))


@pytest.mark.parametrize("geometry", ["paper", "tiny"])
def test_random_subnets_have_no_other_parts(geometry: str) -> None:
    size = {"paper": 32, "tiny": 8}[geometry]
    made = MobileNetV3Settings.for_images(image_size=size, in_channels=1, num_classes=2, geometry=geometry)
    net = MobileNetV3(made)
    parts = representatives(net)
    assert len(parts) == 92  # ends, the fixed block, and 5 stages of 2 kinds of blocks of 3 kernels and 3 ratios
    rng = derived_rng("parts")
    assert {name for _ in range(100) for name in part_names(net.describe(net.space.sample(rng)))} <= set(parts)


def test_a_representative_has_its_part(make_net: MakeNet) -> None:
    for name, spec in representatives(make_net(resolutions=(8, 12))).items():
        assert name in part_names(spec)


def test_pieces_one_after_the_other_are_the_network(make_net: MakeNet) -> None:
    """Cut out with the network's own weights, the parts give what the network gives."""
    net = make_net()
    spec = net.describe(net.space.largest())
    network = with_random_weights(sized_network(spec))
    names = part_names(spec)
    ends = part_modules(names[0], spec)
    x = image = torch.randn(2, *ends[0].shape, generator=torch.Generator().manual_seed(1))
    state = network.state_dict()
    for module, start in [
        (ends[0], ""),
        *((part_modules(n, spec)[0], f"blocks.{i}.") for i, n in enumerate(names[1:])),
        (ends[1], ""),
    ]:
        own = {key: state[start + key] for key in module.module.state_dict()}
        module.module.load_state_dict(own, assign=True)
        assert x.shape[1:] == module.shape
        with torch.inference_mode():
            x = module.eval()(x)
    with torch.inference_mode():
        assert torch.equal(x, network(image))


def test_weights_keep_values_in_range(make_net: MakeNet) -> None:
    """Far from where numbers become denormal, and so slow, or infinite."""
    net = make_net(depths=(2, 6))
    network = with_random_weights(sized_network(net.describe(net.space.largest())))
    before = torch.get_rng_state()
    outputs: list[torch.Tensor] = []
    blocks = network.get_submodule("blocks")
    for block in blocks.children():
        block.register_forward_hook(lambda module, args, out: outputs.append(out))
    with torch.inference_mode():
        network(torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert len(outputs) == 31
    assert all(1e-6 < float(out.abs().mean()) < 1e6 for out in outputs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_the_parts_of_a_resnet_are_the_network(bottleneck: bool) -> None:
    """Put one after the other, parts give maps of the shapes that the next one takes, and the logits at the end."""
    more = {"channels": (32, 64), "strides": (1, 2), "bottleneck": bottleneck, "resolutions": (8, 12)}
    net = ResNet(ResNetSettings.parse({"num_classes": 3, **more}, where="here"), seed=1)
    found, rng = set(representatives(net)), derived_rng("parts of a resnet")
    for _ in range(20):
        spec = net.describe(net.space.sample(rng))
        names = part_names(spec)
        assert set(names) <= found
        before, after = part_modules(names[0], spec)
        x = torch.empty(2, *before.shape, device="meta")
        for module in (before, *(part_modules(name, spec)[0] for name in names[1:]), after):
            assert x.shape[1:] == module.shape
            x = module(x)
        assert x.shape == (2, 3)


def test_networks_without_blocks_are_parts_themselves() -> None:
    net = SmallResNet(SmallSettings(num_classes=3), seed=0)
    parts = representatives(net)
    assert len(parts) == net.space.count() == 9
    for name, spec in parts.items():
        assert part_names(spec) == [name]
        (module,) = part_modules(name, spec)
        assert module.shape == (3, 32, 32)


def test_too_many_of_them_are_refused() -> None:
    net = SmallResNet(SmallSettings(num_classes=3, blocks=7), seed=0)
    with pytest.raises(
        UserError, match=r"not made of blocks, so each of 2\.19e\+03 would have to be measured: .* at most 500"
    ):
        representatives(net)
