"""The native kernels against the plain path, which is torch's own operators, in float64 where rounding matters."""

import copy
import ctypes
import dataclasses
import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.support.native import needs_native
from torch import Tensor

from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.nn import native
from trainonce.nn.blocks import ElasticMBConv
from trainonce.nn.fast import FastMBConv
from trainonce.nn.native.calls import KINDS
from trainonce.nn.native.library import PARTS, SIGNATURES, Block, Gradients, Images, NormTensors, SideWeights
from trainonce.nn.plain import ACTIVATIONS, BlockSpec, MBConv
from trainonce.space import derived_rng

KERNELS = (3, 5, 7)


@pytest.fixture
def plain_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Lets a test switch between the native and the plain path."""
    yield monkeypatch
    monkeypatch.undo()


def block_and_spec(
    *, act: str, expand: bool, stride: int, kernel: int, mid: int, se: bool, seed: int = 0
) -> tuple[ElasticMBConv, BlockSpec]:
    """A block with every weight at random, and the spec of one of its subnets."""
    largest = BlockSpec(
        in_channels=13 if expand else 24,
        mid_channels=41 if expand else 24,
        out_channels=13 if expand else 24,
        kernel_size=7,
        stride=stride,
        se_channels=11 if se else 0,
        activation=act,
        expand=expand,
    )
    block = ElasticMBConv(largest, KERNELS).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in block.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4
    mid = mid if expand else 24
    return block, dataclasses.replace(
        largest, kernel_size=kernel, mid_channels=mid, se_channels=(7 if mid < 41 else 11) if se else 0
    )


def results(block: ElasticMBConv, spec: BlockSpec, x_BCHW: Tensor, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Output, every gradient, and the running statistics after one pass in training mode."""
    block = copy.deepcopy(block).to(dtype).train()
    x = x_BCHW.to(dtype).clone(memory_format=torch.channels_last).requires_grad_()
    out = block(x, spec)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().mul(3).view(out.shape).to(dtype)
    (out * weight).sum().backward()
    found: dict[str, Tensor | None] = {"out": out.detach(), "dx": x.grad}
    found |= {f"d {name}": parameter.grad for name, parameter in block.named_parameters()}
    return found | dict(block.named_buffers())


def check_against_plain(block: ElasticMBConv, spec: BlockSpec, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native path is as near to float64 as the plain path in float32 is, within a few roundings."""
    fast = results(block, spec, x, torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(native, "usable", lambda _x: False)
        plain, exact = results(block, spec, x, torch.float32), results(block, spec, x, torch.float64)
    for name, want in exact.items():
        got, reference = fast[name], plain[name]
        if want is None or got is None or reference is None:
            assert want is None and got is None and reference is None, name  # noqa: PT018
            continue
        scale = want.abs().max().item() + 1e-30
        error = (got.double() - want).abs().max().item() / scale
        plain_error = (reference.double() - want).abs().max().item() / scale
        # Over a handful of pixels some sums of gradients cancel but for rounding, hence not 1e-6 for those.
        tolerance = 3e-4 if name.startswith("d") else 1e-5
        assert error <= max(tolerance, 4 * plain_error), (name, error, plain_error)


@needs_native
@pytest.mark.parametrize("act", ["relu", "h_swish"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("expand", [True, False])
def test_every_choice_on_every_map_size(
    act: str, stride: int, kernel: int, expand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1, 2, 3, 4, 5, 8, 9, 16):
        for mid in (16, 41):
            for se in (False, True):
                block, spec = block_and_spec(act=act, expand=expand, stride=stride, kernel=kernel, mid=mid, se=se)
                x = torch.randn(5, spec.in_channels, size, size, generator=torch.Generator().manual_seed(size)).double()
                check_against_plain(block, spec, x, monkeypatch)


def test_every_activation_of_a_plain_block_is_known() -> None:
    """Another would raise a KeyError; what they compute is compared with torch below."""
    assert set(ACTIVATIONS) < set(KINDS)


@needs_native
@pytest.mark.parametrize(("stride", "expand", "se"), [(1, True, True), (2, True, False), (1, False, False)])
def test_relu6_is_cut_at_both_ends(stride: int, expand: bool, se: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms are scaled so that a good part of the numbers lies above 6; with another epsilon than others have."""
    block, spec = block_and_spec(act="relu6", expand=expand, stride=stride, kernel=5, mid=41, se=se)
    norms = [norm for norm in (block.expand_bn, block.depthwise_bn, block.project_bn) if norm is not None]
    for norm in norms:
        norm.eps = 0.1
        norm.weight.data.mul_(25)
    spec = dataclasses.replace(spec, bn_eps=0.1)
    x = torch.randn(6, spec.in_channels, 7, 7, generator=torch.Generator().manual_seed(2)).double()
    with monkeypatch.context() as patch:
        patch.setattr(native, "usable", lambda _x: False)
        seen: list[Tensor] = []
        handle = block.act.register_forward_hook(lambda _module, _given, made: seen.append(made))
        block.train()(x, spec)
        handle.remove()
    assert all(0.1 < (made == 6).double().mean() < 0.6 and 0.1 < (made == 0).double().mean() < 0.6 for made in seen)
    check_against_plain(block, spec, x, monkeypatch)
    plain = MBConv(spec).double()
    plain.load_state_dict(block.slices(spec), strict=False)
    for training in (True, False):
        exact, fast = copy.deepcopy(plain).train(training), copy.deepcopy(plain).float().train(training)
        with torch.no_grad():
            want, got = exact(x), FastMBConv(fast, spec)(x.float())
        assert (got - want).abs().max() <= 2e-5 * want.abs().max()


@needs_native
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    images=st.integers(6, 9),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    stride=st.sampled_from([1, 2]),
    kernel=st.sampled_from(KERNELS),
    mid=st.integers(8, 41),  # of fewer channels each gradient may be one sum that cancels
    threads=st.integers(1, 3),
    act=st.sampled_from(["relu", "h_swish"]),
    expand=st.booleans(),
    se=st.booleans(),
)
def test_any_shape_and_number_of_threads(
    images: int,
    height: int,
    width: int,
    stride: int,
    kernel: int,
    mid: int,
    threads: int,
    act: str,
    expand: bool,
    se: bool,
) -> None:
    # On a map of one pixel a kernel is a scale, which the batch norm behind it takes out: its gradient cancels.
    assume(expand or min(height, width) > 2)
    block, spec = block_and_spec(act=act, expand=expand, stride=stride, kernel=kernel, mid=mid, se=se)
    x = torch.randn(images, spec.in_channels, height, width, generator=torch.Generator().manual_seed(images)).double()
    before = torch.get_num_threads()
    patch = pytest.MonkeyPatch()
    patch.setattr("trainonce.nn.native.calls.SMALLEST_SHARE", 1)  # share out even the smallest work
    torch.set_num_threads(threads)
    try:
        check_against_plain(block, spec, x, patch)
    finally:
        torch.set_num_threads(before)
        patch.undo()


@needs_native
def test_a_whole_network_of_the_papers_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    built = MobileNetV3Settings.for_images(image_size=32, in_channels=3, num_classes=10, geometry="paper", dropout=0.0)
    net = MobileNetV3(built, seed=3).train()
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) % 10

    def gradients(arch: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        twin = copy.deepcopy(net).to(dtype)
        torch.autograd.backward(torch.nn.functional.cross_entropy(twin(x.to(dtype), arch), labels))
        return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}

    rng = derived_rng(0, "native")
    for arch in (net.space.smallest(), net.space.largest(), net.space.sample(rng), net.space.sample(rng)):
        fast = gradients(arch, torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr(native, "usable", lambda _x: False)
            plain, exact = gradients(arch, torch.float32), gradients(arch, torch.float64)
        assert fast.keys() == plain.keys() == exact.keys()

        def distance(found: dict[str, Tensor], exact: dict[str, Tensor] = exact) -> float:
            return float(torch.stack([(found[n].double() - exact[n]).norm() for n in exact]).norm())

        size = torch.stack([g.norm() for g in exact.values()]).norm().item()
        # Twenty batch norms over a handful of images amplify rounding: the plain path says by how much.
        assert distance(fast) <= max(1e-5 * size, 3 * distance(plain))


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_plain_block_with_fixed_statistics(
    kernel: int, expand: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images go through in chunks: more of them than a chunk holds, fewer, and a last chunk that is not full."""
    monkeypatch.setattr("trainonce.nn.native.calls.SMALLEST_SHARE", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for act, stride, se, (images, height, width) in product(
            ("relu", "h_swish"), (1, 2), (False, True), ((1, 1, 1), (2, 2, 2), (7, 5, 3), (75, 16, 16))
        ):
            elastic, spec = block_and_spec(act=act, expand=expand, stride=stride, kernel=kernel, mid=17, se=se)
            block = MBConv(spec)
            block.load_state_dict(elastic.slices(spec), strict=False)  # but for the counts of batches
            generator = torch.Generator().manual_seed(height)
            for name, buffer in block.named_buffers():
                if "running" in name:
                    buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
            x = torch.randn(images, spec.in_channels, height, width, generator=generator)
            with torch.no_grad():
                want = block.double().eval()(x.double())
                got = FastMBConv(block.float(), spec)(x)
            assert (got - want).abs().max() <= 2e-5 * want.abs().max()
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_in_any_memory_layout(layout: torch.memory_format) -> None:
    block, spec = block_and_spec(act="h_swish", expand=True, stride=1, kernel=5, mid=16, se=True)
    block = block.float().train()
    for images in (1, 3):
        x = torch.randn(images, 13, 6, 5, generator=torch.Generator().manual_seed(1))
        want = block(x.contiguous(memory_format=torch.channels_last), spec)
        assert torch.equal(block(x.contiguous(memory_format=layout), spec), want)
        assert torch.equal(block(x.flip(3).flip(3)[:, :, :, :], spec), want)
        assert torch.equal(block(x.transpose(2, 3).contiguous().transpose(2, 3), spec), want)


@needs_native
def test_numbers_that_are_not_finite_are_not_hidden() -> None:
    block, spec = block_and_spec(act="relu", expand=True, stride=1, kernel=3, mid=16, se=True)
    x = torch.randn(4, 13, 4, 4)
    x[0, 0, 0, 0] = float("nan")
    assert block.float().train()(x, spec).isnan().any()


@needs_native
def test_one_value_a_channel_is_refused_as_torch_refuses_it() -> None:
    block, spec = block_and_spec(act="relu", expand=True, stride=1, kernel=3, mid=16, se=False)
    with pytest.raises(ValueError, match="more than one value"):
        block.float().train()(torch.randn(1, 13, 1, 1), spec)


@needs_native
def test_autograd_functions_of_weights_work_too() -> None:
    block, spec = block_and_spec(act="relu", expand=True, stride=1, kernel=3, mid=16, se=False)
    block = block.float().train()
    (grad,) = torch.autograd.grad(block(torch.randn(4, 13, 4, 4), spec).sin().sum(), [block.expand.weight])  # type: ignore[union-attr]
    assert grad[:16].abs().sum() > 0
    assert grad[16:].abs().sum() == 0
    assert block.expand is not None
    assert block.expand.weight.grad is None


@needs_native
def test_what_the_native_path_does_not_take() -> None:
    assert native.usable(torch.zeros(1))
    assert not native.usable(torch.zeros(1, dtype=torch.float64))
    assert not native.usable(torch.zeros(1, device="meta"))
    with torch.autocast("cpu"):
        assert not native.usable(torch.zeros(1))


def whole_source() -> str:
    return "\n".join(part.read_text(encoding="utf-8") for part in PARTS)


@pytest.mark.parametrize("structure", [NormTensors, Block, Gradients, Images, SideWeights])
def test_structures_are_those_of_the_source(structure: type[ctypes.Structure]) -> None:
    """The same fields in the same order: else memory would be read as what it is not."""
    source = re.sub(r"/\*.*?\*/", "", whole_source(), flags=re.DOTALL)
    body = source[: source.index(f"}} {structure.__name__};")].rpartition("typedef struct {")[2]
    declared = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, names = re.match(r"(?:const )?(\w+) (.*)", declaration, re.DOTALL).groups()  # type: ignore[union-attr]
        for name in names.split(","):
            pointer = "*" in name or (kind == "float" and "*" in names)
            size = {"long": 8, "int": 4, "float": 4}.get(kind, 0)
            declared.append((name.strip(" *\n").partition("[")[0], 8 if pointer else size))
    fields = structure._fields_
    sizes = [8 if kind is ctypes.c_void_p else ctypes.sizeof(kind) for _, kind in fields]  # type: ignore[misc]
    found = [(name, 0 if "norm" in name else size) for (name, *_), size in zip(fields, sizes, strict=True)]
    assert found == [(name, 0 if "norm" in name else size) for name, size in declared]


def test_signatures_are_those_of_the_source() -> None:
    source = whole_source()
    for name, (gives, takes) in SIGNATURES.items():
        head = source.split(f"\n{'void' if gives is None else 'long'} {name}(")[1].split(")")[0]
        assert len(head.split(",")) == len(takes), name
