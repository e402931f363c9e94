"""Lists of operations by the native kernels, against torch's operators in float64, and what is left to torch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.native import needs_native
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.evaluation.chain import Chain
from trainonce.evaluation.evaluator import recalibrate
from trainonce.models.traced.tracing import trace
from trainonce.nn.fast import with_fast_blocks
from trainonce.nn.fast_graph import FastProgram, FusedBlock, FusedNorm
from trainonce.nn.plain_graph import GraphNetwork, Program


class Inverted(nn.Module):
    """A block as libraries write it, between a stem and a classifier."""

    def __init__(
        self,
        *,
        kernel: int = 3,
        stride: int = 1,
        same: bool = False,
        act: Callable[[Tensor], Tensor] = F.relu6,
        second_act: Callable[[Tensor], Tensor] | None = None,
        expand: bool = True,
        squeeze: bool = False,
        out: int = 12,
        eps: float = 1e-3,
        last_eps: float | None = None,
        momentum: float = 0.01,
        bias: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        mid = 20 if expand else 12
        norm: dict[str, Any] = {"eps": eps, "momentum": momentum}
        self.kernel, self.stride, self.same, self.act, self.squeezes = kernel, stride, same, act, squeeze
        self.second_act = second_act or act
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.expand = nn.Conv2d(12, mid, 1, bias=bias) if expand else None
        self.norm1 = nn.BatchNorm2d(mid, **norm)
        padding = 0 if same else kernel // 2 * dilation
        self.depthwise = nn.Conv2d(mid, mid, kernel, stride, padding, dilation, groups=mid, bias=False)
        self.norm2 = nn.BatchNorm2d(mid, **norm)
        self.reduce, self.gate = nn.Conv2d(mid, 6, 1), nn.Conv2d(6, mid, 1)
        self.project = nn.Conv2d(mid, out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out, eps=last_eps or eps, momentum=momentum)
        self.fc = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        entered = y = self.stem(x)
        if self.expand is not None:
            y = self.act(self.norm1(self.expand(y)))
        if self.same:
            pads = [max((-(-side // self.stride) - 1) * self.stride + self.kernel - side, 0) for side in y.shape[2:]]
            y = F.pad(y, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])
        y = self.second_act(self.norm2(self.depthwise(y)))
        if self.squeezes:
            y = y * F.hardsigmoid(self.gate(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        y = self.norm3(self.project(y))
        y = entered + y if y.shape == entered.shape else y
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits


def network_of(model: nn.Module, side: int, seed: int) -> GraphNetwork:
    """The model as a list of operations, every weight at random."""
    traced = trace(model, torch.zeros(1, 3, side, side))
    network = traced.spec.build()
    network.load_state_dict(traced.state)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return network.train()


def after_a_pass(network: GraphNetwork, program: type[Program], dtype: torch.dtype, side: int) -> dict[str, Tensor]:
    """Logits, every gradient and the running statistics after one pass in training mode."""
    copied = network.spec.build()
    copied.load_state_dict(network.state_dict())
    copied = copied.to(dtype).train()
    copied.faster = program(network.spec)
    images = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(side)).to(dtype)
    x = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    logits = copied(x)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=dtype).sin().view_as(logits)).sum().backward()
    assert x.grad is not None
    found = {"logits": logits.detach(), "d images": x.grad}
    found |= {f"d {name}": p.grad for name, p in copied.named_parameters() if p.grad is not None}
    return found | {name: b for name, b in copied.named_buffers() if "running" in name}


def check(network: GraphNetwork, side: int) -> None:
    """By the kernels it is as near to float64 as torch's operators in float32 are, within a few roundings."""
    exact = after_a_pass(network, Program, torch.float64, side)
    plain = after_a_pass(network, Program, torch.float32, side)
    fast = after_a_pass(network, FastProgram, torch.float32, side)
    assert fast.keys() == exact.keys()
    for name, want in exact.items():
        scale = want.abs().max().item() + 1e-6
        error, of_torch = ((got[name].double() - want).abs().max().item() / scale for got in (fast, plain))
        # Gradients of what a batch norm takes away cancel but for rounding.
        assert error <= max(1e-3 if name.startswith("d ") else 1e-5, 6 * of_torch), (name, error, of_torch)


def runs(model: nn.Module, side: int = 8) -> list[FusedBlock | FusedNorm]:
    return list(FastProgram(trace(model, torch.zeros(1, 3, side, side)).spec).runs.values())


@needs_native
@settings(deadline=None, max_examples=12)
@given(
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.sampled_from([1, 2]),
    same=st.booleans(),
    act=st.sampled_from([F.relu, F.relu6, F.hardswish]),
    expand=st.booleans(),
    squeeze=st.booleans(),
    out=st.sampled_from([12, 9]),
    side=st.integers(3, 13),
    momentum=st.sampled_from([0.1, 0.01]),
)
def test_a_block_is_one_call_that_computes_the_same(side: int, **sizes: Any) -> None:
    model = Inverted(**sizes)
    found = runs(model, side)
    same = sizes["same"] and sizes["stride"] == 2 and side % 2 == 0
    [block] = found
    assert isinstance(block, FusedBlock)
    assert block.sizes.uneven == same
    assert block.sizes.residual == (sizes["stride"] == 1 and sizes["out"] == 12)
    assert (block.sizes.se_channels > 0, block.momentum) == (sizes["squeeze"], sizes["momentum"])
    check(network_of(model, side, seed=side), side)


@needs_native
@pytest.mark.parametrize(
    ("sizes", "norms"),
    [
        ({"act": F.silu}, 3),  # no activation of the kernels
        ({"second_act": F.relu}, 3),  # two of them in a block
        ({"bias": True}, 3),  # before a norm
        ({"last_eps": 1e-5}, 3),
        ({"dilation": 2}, 3),
    ],
)
def test_what_is_no_block_of_the_kernels_has_fast_norms(sizes: dict[str, Any], norms: int) -> None:
    model = Inverted(**sizes)
    found = runs(model)
    blocks = [run for run in found if isinstance(run, FusedBlock)]
    # Behind an expansion that does not fit, a block without one may still be found.
    assert len(found) - len(blocks) == norms - 2 * len(blocks)
    check(network_of(model, 8, seed=1), 8)


class Looked(Inverted):
    """A block of which something on the way is read a second time."""

    def __init__(self, *, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        entered = self.stem(x)
        first = self.act(self.norm1(self.expand(entered)))  # type: ignore[misc]
        second = self.act(self.norm2(self.depthwise(first)))
        third = self.norm3(self.project(second))
        added = {"first": first.mean(1, keepdim=True), "second": second.mean(1, keepdim=True), "third": third}
        logits: Tensor = self.fc((third + added[self.where] + entered).mean((2, 3)))
        return logits


@needs_native
@pytest.mark.parametrize("where", ["first", "second", "third"])
def test_what_others_read_is_made(where: str) -> None:
    model = Looked(where=where)
    found = [run for run in runs(model) if isinstance(run, FusedBlock)]
    beginning = {"first": ["depthwise"], "second": [], "third": ["expand"]}[where]
    assert ["expand" if "expand.0.weight" in run.learned else "depthwise" for run in found] == beginning
    assert not any(run.sizes.residual for run in found)
    check(network_of(model, 8, seed=2), 8)


class Dense(nn.Module):
    """Convolutions of 3 x 3 with norms and activations, and a norm whose map is read twice."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.conv1, self.norm1 = nn.Conv2d(3, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.conv2, self.norm2 = nn.Conv2d(10, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x))
        y = self.act(y) + y
        logits: Tensor = self.fc(self.act(self.norm2(self.conv2(y))).mean((2, 3)))
        return logits


@needs_native
@pytest.mark.parametrize(
    ("act", "kind"), [(F.relu, "relu"), (F.hardswish, "h_swish"), (F.relu6, "relu6"), (F.silu, "none")]
)
def test_norms_take_their_activation_along(act: Callable[[Tensor], Tensor], kind: str) -> None:
    model = Dense(act)
    first, second = runs(model)
    assert isinstance(first, FusedNorm)
    assert isinstance(second, FusedNorm)
    assert (first.kind, second.kind) == ("none", kind)
    check(network_of(model, 8, seed=3), 8)


@needs_native
def test_on_a_map_of_odd_size_an_uneven_block_is_left_to_torch() -> None:
    """A network is for one size; asked for another one, it still computes what its operations say."""
    network = network_of(Inverted(stride=2, same=True), 8, seed=4)
    smaller = replace(network.spec, resolution=7).build()
    smaller.load_state_dict(network.state_dict())
    check(smaller, 7)


@needs_native
def test_maps_with_channels_outermost_are_left_to_torch() -> None:
    """What follows might want to see them as they lie."""
    network = network_of(Dense(F.relu), 8, seed=5)
    x = torch.randn(4, 3, 8, 8)
    want = network(x)
    network.faster = FastProgram(network.spec)
    assert torch.equal(network(x), want)


@needs_native
def test_evaluation_without_gradients_is_by_the_kernels_too() -> None:
    """With gradients, and where statistics are taken without, it is torch's, to the last bit."""
    network = network_of(Inverted(squeeze=True), 8, seed=6)
    fast = with_fast_blocks(network_of(Inverted(squeeze=True), 8, seed=6))
    assert isinstance(fast.faster, FastProgram)
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(network(x), fast(x))
    want = network.eval()(x).detach()
    assert torch.equal(want, fast.eval()(x).detach())
    with torch.inference_mode():
        found = fast(x)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5 * float(want.abs().max()))
    assert not torch.equal(found, want), "not by the kernels"


@needs_native
def test_scoring_takes_the_statistics_of_the_calibration_images() -> None:
    """Norms alone are in training mode then; the kernels must not take the statistics of before."""
    generator = torch.Generator().manual_seed(7)
    calibration, images = (torch.randn(3, 9, 3, 8, 8, generator=generator) for _ in range(2))
    batches = [x.contiguous(memory_format=torch.channels_last) for x in calibration]
    scored = [x.contiguous(memory_format=torch.channels_last) for x in images]
    network = network_of(Inverted(squeeze=True), 8, seed=7)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.uniform_(1, 2)
    apart = network.spec.build()
    apart.load_state_dict(network.state_dict())
    recalibrate(apart, batches)
    with torch.no_grad():
        want = torch.cat([apart(x) for x in scored])
    found = torch.cat(list(Chain(lambda: batches, lambda: iter(scored)).logits(network)))
    torch.testing.assert_close(found, want, rtol=0, atol=1e-4 * float(want.abs().max()))
