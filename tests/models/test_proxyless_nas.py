"""The elastic ProxylessNAS: the published geometry, one network in three forms, on every path that a network takes."""

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainonce.cost.macs import Cost
from trainonce.errors import UserError
from trainonce.evaluation.chain import Chain
from trainonce.evaluation.evaluator import recalibrate
from trainonce.models import ProxylessNAS, ProxylessNASSettings, build
from trainonce.models.mbconv_cost import network_cost
from trainonce.nn import native
from trainonce.nn.plain import NetworkSpec, PlainNetwork
from trainonce.space import Architecture

SMALL = ProxylessNASSettings(num_classes=5, width_mult=0.5, resolutions=(24, 32), depths=(1, 2), dropout=0.0)


@pytest.fixture(scope="module")
def net() -> ProxylessNAS:
    """A small supernet in evaluation mode whose every number is its own, with activations on both sides of 6."""
    made, generator = ProxylessNAS(SMALL, seed=2), torch.Generator().manual_seed(1)
    for name, tensor in made.state_dict().items():
        if "transforms" in name or (tensor.ndim == 1 and tensor.is_floating_point()):
            tensor += 0.2 * torch.rand(tensor.shape, generator=generator)
        if name.endswith(("bn.weight", ".1.weight")) and "project" not in name:
            tensor *= 3
    return made.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def some(net: ProxylessNAS, count: int = 4) -> list[Architecture]:
    rng = random.Random(3)
    return [net.space.largest(), net.space.smallest(), *(net.space.sample(rng) for _ in range(count))]


def test_the_published_geometry() -> None:
    """OFA's at width 1.3: the channels are those of its code's rounding, worked out by hand."""
    net = ProxylessNAS(ProxylessNASSettings(num_classes=1000, width_mult=1.3, resolutions=(224,)))
    spec = net.describe(net.space.largest())
    assert (spec.stem_channels, spec.final_channels, spec.feature_channels) == (40, 1664, 0)
    assert [block.out_channels for block in spec.blocks] == [
        24,
        *[32] * 4,
        *[56] * 4,
        *[104] * 4,
        *[128] * 4,
        *[248] * 4,
        416,
    ]
    first = spec.blocks[0]
    assert (first.mid_channels, first.kernel_size, first.expand, first.residual) == (40, 3, False, False)
    assert [block.stride for block in spec.blocks] == [1, *[2, 1, 1, 1] * 3, *[1] * 4, *[2, 1, 1, 1], 1]
    assert {block.se_channels for block in spec.blocks} == {0}
    assert {spec.activation, *(block.activation for block in spec.blocks)} == {"relu6"}
    assert {spec.bn_eps, *(block.bn_eps for block in spec.blocks)} == {1e-3}
    assert {norm.eps for norm in net.extract(net.space.largest()).modules() if isinstance(norm, nn.BatchNorm2d)} == {
        1e-3
    }
    assert net.space["stage6.depth"].values == (1,)
    assert net.space.count() == (9**2 + 9**3 + 9**4) ** 5 * 9


def test_equal_in_evaluation_mode(net: ProxylessNAS, images: Tensor) -> None:
    for arch in some(net):
        plain = net.extract(arch)
        assert torch.equal(net(images, arch), plain(images))
        assert torch.equal(net.bind(arch)(images), plain(images))


@pytest.mark.parametrize("path", ["native", "plain"])
def test_training_agrees_with_the_plain_network(
    path: str, net: ProxylessNAS, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, gradients of the last and the first layer, and statistics; the plain network runs in float64."""
    if path == "native" and native.why_not():
        pytest.skip(native.why_not())
    for arch in some(net, count=1):
        supernet = copy.deepcopy(net).train()
        if path == "plain":
            monkeypatch.setattr(native, "usable", lambda _x: False)
            supernet = supernet.double()
        plain = supernet.extract(arch).double()
        found, want = supernet(images.to(supernet.classifier.weight.dtype), arch), plain(images.double())
        rtol = 1e-7 if path == "plain" else 1e-3
        torch.testing.assert_close(found.double(), want, rtol=rtol, atol=rtol * float(want.detach().abs().max()))
        for model, made in ((supernet, found), (plain, want)):
            model.zero_grad()
            made.square().sum().backward()
        here, there = dict(supernet.named_parameters()), dict(plain.named_parameters())
        for name in ("stem.0.weight", "final.0.weight", "final.1.bias", "classifier.weight"):
            got, expected = here[name].grad, there[name].grad
            assert got is not None
            assert expected is not None
            assert (got - expected).norm() <= 10 * rtol * expected.norm(), name
        moved = plain.state_dict()
        for name, tensor in supernet.slices(arch).items():
            if "running" in name:
                torch.testing.assert_close(tensor.double(), moved[name], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("path", ["native", "plain"])
def test_scored_as_a_chain_of_stages(
    path: str, net: ProxylessNAS, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "plain":
        monkeypatch.setattr(native, "usable", lambda _x: False)
    chain = Chain(lambda: [images[:4], images[2:]], lambda: [images])
    for arch in [*some(net, count=2), net.space.largest()]:
        plain = net.extract(arch)
        recalibrate(plain, [images[:4], images[2:]])
        with torch.no_grad():
            want = plain(images)
        (found,) = chain.logits(net.extract(arch))
        torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def test_costs_are_those_of_torchs_counter(net: ProxylessNAS) -> None:
    for arch in some(net):
        plain, spec = net.extract(arch), net.describe(arch)
        with FlopCounterMode(display=False) as counter:
            plain(torch.zeros(1, 3, spec.resolution, spec.resolution))
        expected = Cost(counter.get_total_flops() // 2, sum(p.numel() for p in plain.parameters()))
        assert net.cost_of(arch) == network_cost(spec) == expected


def test_specs_survive_json_and_old_ones_mean_what_they_did(net: ProxylessNAS) -> None:
    spec = net.describe(net.space.smallest())
    assert NetworkSpec.from_json(spec.to_json()) == spec
    old = spec.to_json()
    del old["activation"], old["bn_eps"]
    old["blocks"] = [{k: v for k, v in block.items() if k != "bn_eps"} for block in old["blocks"]]
    read = NetworkSpec.from_json(old | {"feature_channels": 8})
    assert (read.activation, read.bn_eps, {block.bn_eps for block in read.blocks}) == ("h_swish", 1e-5, {1e-5})
    plain = PlainNetwork(read)
    assert isinstance(plain.act, nn.Hardswish)
    assert plain.classifier.in_features == 8


def test_sorting_channels_changes_no_subnet(net: ProxylessNAS, images: Tensor) -> None:
    supernet, x = copy.deepcopy(net).double(), images.double()
    before = [supernet(x, arch) for arch in some(net)]
    supernet.sort_channels(supernet.space)
    for arch, want in zip(some(net), before, strict=True):
        torch.testing.assert_close(supernet(x, arch), want, rtol=1e-8, atol=1e-8)


def test_is_built_by_its_name() -> None:
    made = build("proxyless_nas", SMALL.model_dump(mode="json"), seed=2)
    assert isinstance(made, ProxylessNAS)
    assert all(map(torch.equal, made.state_dict().values(), ProxylessNAS(SMALL, seed=2).state_dict().values()))
    with pytest.raises(UserError, match="strides"):
        build("proxyless_nas", {"num_classes": 3, "strides": (2, 2, 2, 1, 2)})
