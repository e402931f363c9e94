"""A person's own network as a supernet: what is found elastic, and that every subnet is a part of the network."""

import copy
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.own_networks import Attention, Chain, Concatenated, Inverted, Residual, Shuffled
from torch import Tensor, nn

from trainonce import testing
from trainonce.cost.macs import counted_cost
from trainonce.data import load_dataset
from trainonce.errors import UserError
from trainonce.models.traced import Traced, elastic, in_own_classes
from trainonce.nn.plain_graph import DROPOUT, NORM, GraphSpec
from trainonce.space import Architecture

M = TypeVar("M", bound=nn.Module)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind for kind in (Chain, Residual, Inverted, Concatenated, Shuffled, Attention)
}
EXAMPLE = torch.zeros(2, 1, 8, 8)


def trained_like(model: M) -> M:
    """A network whose weights and statistics are all of its own, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator) - 0.5
                tensor.copy_(noise + 1 if name.endswith("var") or tensor.ndim == 1 else noise)
    return model.eval()


@cache
def made(name: str, *, stages: bool = False) -> tuple[nn.Module, Traced]:
    model = trained_like(NETWORKS[name]())
    net = elastic(model, EXAMPLE, stages=stages)
    net.eval()
    return model, net


def choices_of(net: Traced) -> dict[str, tuple[int, ...]]:
    return {choice.name: choice.values for choice in net.space.choices}


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def assert_is_extracted(net: Traced, arch: Architecture) -> None:
    """A subnet computes what its extracted network does, to the last bit, and costs what torch counts."""
    plain = net.extract(arch)
    with torch.no_grad():
        assert torch.equal(net(images(), arch), plain(images()))
    assert net.cost_of(arch) == counted_cost(net.describe(arch))
    assert net.cost_of(arch).params == sum(parameter.numel() for parameter in plain.parameters())


AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "Chain": {"conv1.width": (8, 16, 24, 32), "conv2.width": (8, 16, 24)},
    "Residual": {
        "blocks.depth": (1, 2, 3),
        "blocks_0.conv1.width": (8, 16, 24, 32),
        "blocks_1.conv1.width": (8, 16, 24, 32),
        "blocks_2.conv1.width": (8, 16),
    },
    "Inverted": {"stage1.depth": (0, 1), "expand.width": (16, 24, 40, 48), "reduce.width": (8, 16, 24)},
    "Concatenated": {"left.width": (8, 16), "right.width": (8, 16, 24), "after.width": (8, 16)},
    "Shuffled": {"first.width": (1, 2, 3, 4)},
    "Attention": {"stage1.depth": (1, 2), "qkv.width": (1, 2, 3, 4), "up.width": (8, 16, 24, 32)},
}
"""What is elastic inside of blocks: channels, groups of them in `Shuffled`, heads in `Attention`."""
STREAMS = {"Residual": "stem.width", "Inverted": "stem.width", "Attention": "patches.width"}
"""The axes of streams, which are elastic where widths of stages are asked for."""


@pytest.mark.parametrize("name", NETWORKS)
def test_the_axes_of_small_networks_are_known(name: str) -> None:
    _, net = made(name)
    assert choices_of(net) == AXES[name]
    reasons = {rigid.name: rigid.reason for rigid in net.layout.rigid}
    assert reasons.pop("fc") == "it is the classes"
    assert [f"{axis}.width" for axis in reasons] == ([STREAMS[name]] if name in STREAMS else [])


@pytest.mark.parametrize("name", STREAMS)
def test_widths_of_stages_are_elastic_where_asked(name: str) -> None:
    assert choices_of(made(name, stages=True)[1]) == {**AXES[name], STREAMS[name]: (8, 16)}


@pytest.mark.parametrize("stages", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_largest_subnet_is_the_network_to_the_last_bit_in_any_order_of_channels(name: str, stages: bool) -> None:
    model, net = made(name, stages=stages)
    net, largest = copy.deepcopy(net), net.space.largest()
    with torch.no_grad():
        expected = model(images())
        assert torch.equal(net(images(), largest), expected)
        net.sort_channels(net.space.keep_largest({"width": 1, "depth": 1}))
        assert torch.equal(net(images(), largest), expected)
        assert torch.equal(net.extract(largest)(images()), expected)
    assert net.cost_of(largest).params == sum(parameter.numel() for parameter in model.parameters())
    assert model.state_dict().keys() == net.network.state_dict().keys()
    more = net.extract(largest).state_dict().keys() - model.state_dict().keys()
    assert all(key.endswith(".num_batches_tracked") for key in more), "norms get a counter where they had none"


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(NETWORKS)), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_a_subnet_is_what_is_extracted_and_costs_what_torch_counts(
    name: str, stages: bool, ordered: bool, seed: int
) -> None:
    net = made(name, stages=stages)[1]
    if ordered:
        net = copy.deepcopy(net)
        net.sort_channels(net.space.keep_largest({"width": 1, "depth": 1}))
    assert_is_extracted(net, net.space.sample(random.Random(seed)))


def as_its_own_class(name: str, arch: Architecture) -> nn.Module:
    """A network of those widths, built by the class of the person."""
    if name == "Chain":
        return Chain(arch["conv1.width"], arch["conv2.width"])
    if name == "Residual":
        hidden = [arch[f"blocks_{i}.conv1.width"] for i in range(arch["blocks.depth"])]
        return Residual(arch["stem.width"], tuple(hidden))
    if name == "Concatenated":
        network = Concatenated(arch["left.width"], arch["right.width"])
        network.after = nn.Conv2d(network.after.in_channels, arch["after.width"], 1)
        network.fc = nn.Linear(arch["after.width"], 10)
        return network
    assert name == "Shuffled"
    return Shuffled(8 * arch["first.width"])


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["Chain", "Residual", "Concatenated", "Shuffled"]), st.integers(0, 10**6))
def test_a_subnet_is_the_persons_own_class_with_smaller_weights(name: str, seed: int) -> None:
    net = made(name, stages=True)[1]
    arch = net.space.sample(random.Random(seed))
    own = as_its_own_class(name, arch).eval()
    plain = net.extract(arch)
    own.load_state_dict({key: tensor for key, tensor in plain.state_dict().items() if key in own.state_dict()})
    with torch.no_grad():
        assert torch.equal(own(images()), plain(images()))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["Chain", "Residual", "Concatenated", "Inverted"]), st.integers(0, 10**6))
def test_a_subnet_is_given_in_the_persons_own_classes(name: str, seed: int) -> None:
    model, net = made(name, stages=True)
    space = net.space.restrict({"depth": (1,)}) if name == "Inverted" else net.space
    arch = space.sample(random.Random(seed))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    own = in_own_classes(net, model, arch)
    assert type(own) is type(model)
    with torch.no_grad():
        assert torch.equal(own(images()), net(images(), arch))
    for module in own.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert sum(p.numel() for p in in_own_classes(net, model, net.space.largest()).parameters()) == sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize("name", ["Shuffled", "Inverted"])
def test_own_classes_that_cannot_be_a_subnet_are_refused_in_a_sentence(name: str) -> None:
    """`Shuffled` spells its channels out in a reshape; the only branch of `Inverted` is no module."""
    model, net = made(name)
    with pytest.raises(UserError, match=f"{name} (cannot be|computes something else than) the subnet"):
        in_own_classes(net, model, net.space.smallest())


def test_ordering_keeps_the_channels_that_matter() -> None:
    """Where half of the hidden channels do nothing, the network at half of its width computes what it did."""
    model = trained_like(Residual(hidden=(32,)))
    idle = random.Random(0).sample(range(32), 16)
    weights = model.state_dict()
    with torch.no_grad():
        for name in ("conv1.weight", "bn1.weight", "bn1.bias"):
            weights[f"blocks.0.{name}"][idle] = 0
        weights["blocks.0.conv2.weight"][:, idle] = 0
        net = elastic(model, EXAMPLE).eval()
        half = net.space.check(dict(net.space.largest()) | {"blocks_0.conv1.width": 16})
        assert not torch.allclose(net(images(), half), model(images()), atol=1e-3)
        net.sort_channels(net.space.keep_largest({"width": 1, "depth": 1}))
        torch.testing.assert_close(net(images(), half), model(images()))


def test_training_moves_the_statistics_of_the_channels_that_a_subnet_has_and_no_others() -> None:
    net = copy.deepcopy(made("Chain")[1])
    net.sort_channels(net.space.keep_largest({"width": 1}))
    arch = net.space.check({"conv1.width": 8, "conv2.width": 24})
    kept = net.get_buffer("order.conv1.width")[:8].tolist()
    assert kept != sorted(kept)
    before = net.network.get_buffer("norm1.running_mean").clone()
    net.train()(images(), arch)
    after = net.network.get_buffer("norm1.running_mean")
    assert (before != after).nonzero().flatten().tolist() == sorted(kept)


@pytest.mark.parametrize("name", ["Residual", "Inverted"])
def test_a_training_step_is_that_of_the_network(name: str) -> None:
    """Logits, gradients and statistics at the largest subnet are those of the person's own network in training."""
    given_, shared = made(name)
    model, net = copy.deepcopy(given_).train(), copy.deepcopy(shared).train()
    expected, logits = model(images()), net(images(), net.space.largest())
    torch.testing.assert_close(logits, expected)
    for made_logits in (expected, logits):
        made_logits.square().sum().backward()
    own = dict(net.network.named_parameters())
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(own[key].grad, parameter.grad)
    for key, buffer in model.named_buffers():
        if not key.endswith("tracked"):
            torch.testing.assert_close(net.network.get_buffer(key), buffer)


def test_it_owes_what_every_family_does(tmp_path: Path) -> None:
    net = elastic(trained_like(Residual(hidden=(16, 16), dropout=0.1)), EXAMPLE, stages=True)
    data = load_dataset("digits", image_size=8)
    testing.check_building(Traced(net.settings))
    testing.check_subnets(net)
    testing.check_costs(net)
    testing.check_channels(net)
    testing.check_recipes(net, data, tmp_path / "recipes")
    testing.check_resume(net, data, tmp_path / "resume")
    testing.check_stages(net, data, tmp_path)


def test_a_network_of_grouped_maps_and_one_of_attention_go_through_every_stage(tmp_path: Path) -> None:
    data = load_dataset("digits", image_size=8)
    for name in ("Shuffled", "Attention"):
        net = copy.deepcopy(made(name, stages=True)[1]).train()
        testing.check_costs(net)
        testing.check_stages(net, data, tmp_path / name)


def test_children_without_a_name_are_written_and_read_by_their_numbers() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU())
    net = elastic(nn.Sequential(model, nn.Flatten(), nn.Linear(16 * 36, 4)), EXAMPLE)
    spec = net.describe(net.space.smallest())
    assert [tensor.name for tensor in spec.tensors][:2] == ["0.0.weight", "0.0.bias"]
    assert GraphSpec.from_json(spec.to_json()) == spec
    for name in ("0.weight; import os", "0..weight", "", "0 .weight"):
        with pytest.raises(ValueError, match="is not a name"):
            GraphSpec.from_json(spec.to_json() | {"tensors": [[name, [1], True, False]]})


def test_other_classes_get_a_fresh_last_layer_and_keep_the_rest() -> None:
    model, _ = made("Residual")
    net = elastic(model, EXAMPLE, num_classes=3, seed=1).eval()
    assert net(images(), net.space.smallest()).shape == (3, 3)
    own, given_ = net.network.state_dict(), model.state_dict()
    assert [key for key in given_ if own[key].shape != given_[key].shape] == ["fc.weight", "fc.bias"]
    assert all(torch.equal(own[key], given_[key]) for key in given_ if not key.startswith("fc."))
    again = elastic(model, EXAMPLE, num_classes=3, seed=1)
    assert torch.equal(own["fc.weight"], again.network.state_dict()["fc.weight"])


def test_what_is_turned_off_stays() -> None:
    net = elastic(made("Residual")[0], EXAMPLE, off=("blocks_1.*", "*.depth"))
    assert set(choices_of(net)) == {"blocks_0.conv1.width", "blocks_2.conv1.width"}
    assert ("blocks_1.conv1", "turned off") in [(rigid.name, rigid.reason) for rigid in net.layout.rigid]


class Unknown(nn.Module):
    """Runs a sum along its channels, for which there is no rule, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cumsum(self.second(self.first(x)), dim=1)
        logits: Tensor = self.fc(self.third(x).mean((2, 3)))
        return logits


def test_an_operation_without_a_rule_freezes_what_it_touches_and_is_named() -> None:
    model = trained_like(Unknown())
    net = elastic(model, EXAMPLE).eval()
    assert set(choices_of(net)) == {"first.width", "third.width"}
    assert ("second", "cumsum.default has no rule") in [(rigid.name, rigid.reason) for rigid in net.layout.rigid]
    arch = net.space.smallest()
    with torch.no_grad():
        assert torch.equal(net(images(), arch), net.extract(arch)(images()))


class Bad(nn.Module):
    """A network that cannot become elastic, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.fc = nn.Conv2d(1, 16, 3), nn.Linear(16, 10)
        self.other = nn.Linear(16, 10)
        if how == "tied":
            self.other.weight = self.fc.weight
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> object:
        x = self.conv(x).mean((2, 3))
        if self.how == "stateful":
            self.seen += 1
            x = x * self.seen
        if self.how == "control flow" and x.sum() > 0:
            x = -x
        if self.how == "random":
            x = x + torch.rand_like(x)
        logits = self.fc(x) + self.other(x)
        return {"logits": logits} if self.how == "dictionary" else (logits, x) if self.how == "several" else logits


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("tied", "other.weight are one tensor: tied weights cannot become elastic"),
        ("stateful", "changes a tensor in place that lives on"),
        ("control flow", "torch.export cannot follow Bad"),
        ("random", "computes something else than its operations"),
        ("dictionary", "must return one tensor"),
        ("several", "must return one tensor"),
    ],
)
def test_what_cannot_be_followed_is_said_in_a_sentence(how: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        elastic(Bad(how), EXAMPLE)


@pytest.mark.parametrize(
    ("model", "example", "sentence"),
    [
        (Chain().half(), EXAMPLE, "conv1.weight is torch.float16: networks are traced in float32"),
        (Chain(), torch.zeros(2, 1, 8, 4), "must be square images"),
        (nn.Sequential(nn.Flatten(), nn.Softmax(1)), EXAMPLE, "has no parameters"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), EXAMPLE, "nothing of this network is elastic"),
        (Chain(), torch.zeros(2, 3, 8, 8), "torch.export cannot follow Chain"),
    ],
)
def test_other_input_is_refused_in_a_sentence(model: nn.Module, example: Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        elastic(model, example)


def test_tracing_leaves_the_network_as_it_is() -> None:
    model = trained_like(Residual()).train()
    model.bn.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state()
    elastic(model, EXAMPLE)
    assert torch.equal(drawn, torch.get_rng_state())
    assert model.training
    assert not model.bn.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "operation", ["from_file.default", "relu_.default", "no_such_thing", "rand.default", "set_.source"]
)
def test_a_network_that_is_read_holds_only_operations_that_follow_from_its_tensors(operation: str) -> None:
    values = made("Chain")[1].settings.network.to_json()
    values["lines"][1][1] = operation
    with pytest.raises(ValueError, match="operation"):
        GraphSpec.from_json(values)


def test_a_network_that_is_read_refers_to_nothing_that_is_not_there() -> None:
    values = made("Chain")[1].settings.network.to_json()
    values["lines"][1][2][0] = "%elsewhere"
    with pytest.raises(ValueError, match="not there"):
        GraphSpec.from_json(values)


def test_tensors_come_in_one_order_in_every_process() -> None:
    """Ranks exchange them in turn, and a set of names has another order in each."""
    net = elastic(Residual(), torch.zeros(1, 1, 8, 8))
    spec = net.settings.network
    norms = list(dict.fromkeys(str(line.args[1]) for line in spec.lines if line.op == NORM))
    assert len(norms) > 4, "so that a chance order is noticed"
    names = [name.removeprefix("network.") for name in net.state_dict()]
    assert [name.removesuffix(".running_mean") for name in names if name.endswith(".running_mean")] == norms


def test_dropout_keeps_no_channels() -> None:
    """What lies behind it is as elastic as without it."""
    with_it, without = (
        elastic(Residual(dropout=chance), torch.zeros(1, 1, 8, 8), stages=True) for chance in (0.2, 0.0)
    )
    assert not with_it.layout.found.unknown
    assert with_it.space.choices == without.space.choices
    assert any(line.op == DROPOUT for line in with_it.settings.network.lines)
