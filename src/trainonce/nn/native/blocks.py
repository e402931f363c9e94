"""An MBConv block over the native kernels: in training as one autograd function, and with fixed statistics.

Weights come as the slices that extraction takes too (the state dict of the plain block), so there is one truth about
what a choice cuts. Rows are float32 [images * height * width, channels]: channels_last without a copy.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainonce.nn.native import kernels
from trainonce.nn.native.kernels import DepthwiseShape, Norm
from trainonce.nn.native.layers import maps, rows
from trainonce.nn.plain import BN_MOMENTUM, BlockSpec, MBConv

Slices = dict[str, Tensor]
DEPTHWISE = "depthwise.0.weight"
Normalise = Callable[[Tensor, str], Tensor]
"""From rows and the name of the batch norm they go into to its stats."""


def mbconv(x_BCHW: Tensor, spec: BlockSpec, cut: Slices, whole: Mapping[str, Tensor]) -> Tensor:
    """The block of `spec` in training mode, differentiable in x, in the depthwise kernel and in the `whole` weights.

    `cut` is the plain block's state dict. All but its depthwise kernel are cut from `whole` weights of the same
    names, whose first entries along each dimension they are; a whole weight's gradient is zero elsewhere.
    """
    out: Tensor = _MBConv.apply(  # type: ignore[no-untyped-call]
        x_BCHW, spec, cut, tuple(whole), cut[DEPTHWISE], *whole.values()
    )
    return out


class PlainMBConv:
    """A plain block without autograd. Its batch norms use the batch or fixed statistics, as their mode says."""

    def __init__(self, block: MBConv, spec: BlockSpec) -> None:
        self.spec = spec
        self.cut: Slices = dict(block.state_dict())
        self.norms = {name: norm for name, norm in block.named_modules() if isinstance(norm, nn.BatchNorm2d)}
        self.fixed: Slices = {}

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Map [B, in, H, W] to [B, out, H / stride, W / stride]."""
        if self.norms["project.1"].training:
            self.fixed = {}
            return _forward(x_BCHW, self.spec, self.cut, self._batch_statistics)[0]
        if not self.fixed:
            self.fixed = {name: _norm(self.cut, name).fixed() for name in self.norms}
        return _infer(x_BCHW, self.spec, self.cut, self.fixed)

    def _batch_statistics(self, y_MC: Tensor, name: str) -> Tensor:
        momentum = self.norms[name].momentum
        assert momentum is not None
        return kernels.norm_statistics(y_MC, _norm(self.cut, name), momentum)


class _Squeezed(NamedTuple):
    """Squeeze-excite on its way from the pooled channels to the gate."""

    pooled_BC: Tensor
    hidden_BS: Tensor
    gate_logits_BC: Tensor
    gate_BC: Tensor


class _Saved(NamedTuple):
    """What backward needs of forward. `expand` means the first pointwise convolution, `project` the second."""

    x_MC: Tensor
    expanded_MC: Tensor
    expand_stats: Tensor
    convolved_MC: Tensor
    depthwise_stats: Tensor
    gated_MC: Tensor
    projected_MC: Tensor
    project_stats: Tensor
    pooled_BC: Tensor
    hidden_BS: Tensor
    gate_logits_BC: Tensor
    gate_BC: Tensor


def _norm(cut: Slices, name: str) -> Norm:
    return Norm(*(cut[f"{name}.{part}"] for part in Norm._fields))


def _forward(x_BCHW: Tensor, spec: BlockSpec, cut: Slices, normalise: Normalise) -> tuple[Tensor, _Saved]:
    shape = DepthwiseShape.of(x_BCHW, spec.stride)
    images, act = shape.images, spec.activation
    x_MC = rows(x_BCHW)
    if spec.expand:
        expanded_MC = x_MC @ cut["expand.0.weight"].flatten(1).t()
        expand_stats, first_act = normalise(expanded_MC, "expand.1"), act
    else:
        expanded_MC, expand_stats, first_act = x_MC, _identity(x_MC), "none"
    convolved_MC = kernels.depthwise(expanded_MC, shape, cut[DEPTHWISE], expand_stats, first_act)
    depthwise_stats = normalise(convolved_MC, "depthwise.1")
    squeezed = gate_BC = None
    if spec.se_channels:
        squeezed = _squeeze(kernels.pool(convolved_MC, images, depthwise_stats, act), cut)
        gate_BC = squeezed.gate_BC
    gated_MC = kernels.affine(convolved_MC, images, depthwise_stats, act, gate_BC)
    projected_MC = gated_MC @ cut["project.0.weight"].flatten(1).t()
    project_stats = normalise(projected_MC, "project.1")
    out_MC = kernels.affine(projected_MC, images, project_stats, "none", None, x_MC if spec.residual else None)
    saved = _Saved(
        *(x_MC, expanded_MC, expand_stats, convolved_MC, depthwise_stats, gated_MC, projected_MC, project_stats),
        *(squeezed or [x_MC.new_empty(0)] * len(_Squeezed._fields)),
    )
    return maps(out_MC, images, *shape.out_size), saved


def _infer(x_BCHW: Tensor, spec: BlockSpec, cut: Slices, stats: Slices) -> Tensor:
    """As `_forward` with fixed stats: the depthwise kernel can then finish its own output."""
    shape = DepthwiseShape.of(x_BCHW, spec.stride)
    images, act = shape.images, spec.activation
    x_MC = rows(x_BCHW)
    y_MC, before, first_act = x_MC, _identity(x_MC), "none"
    if spec.expand:
        y_MC, before, first_act = x_MC @ cut["expand.0.weight"].flatten(1).t(), stats["expand.1"], act
    y_MC = kernels.depthwise(y_MC, shape, cut[DEPTHWISE], before, first_act, stats["depthwise.1"], act)
    if spec.se_channels:
        done = _identity(y_MC)
        gate_BC = _squeeze(kernels.pool(y_MC, images, done, "none"), cut).gate_BC
        y_MC = kernels.affine(y_MC, images, done, "none", gate_BC)
    y_MC = y_MC @ cut["project.0.weight"].flatten(1).t()
    y_MC = kernels.affine(y_MC, images, stats["project.1"], "none", None, x_MC if spec.residual else None)
    return maps(y_MC, images, *shape.out_size)


def _squeeze(pooled_BC: Tensor, cut: Slices) -> "_Squeezed":
    hidden_BS = torch.addmm(cut["se.reduce.bias"], pooled_BC, cut["se.reduce.weight"].flatten(1).t()).relu_()
    logits_BC = torch.addmm(cut["se.expand.bias"], hidden_BS, cut["se.expand.weight"].flatten(1).t())
    return _Squeezed(pooled_BC, hidden_BS, logits_BC, F.hardsigmoid(logits_BC))


def _identity(x_MC: Tensor) -> Tensor:
    """The stats of a batch norm that changes nothing."""
    stats = x_MC.new_zeros(4, x_MC.shape[1])
    stats[kernels.SCALE].fill_(1)
    return stats


class _Gradients:
    """The gradients of whole weights of which a cut was used: zero beyond the cut."""

    def __init__(self, whole: Slices) -> None:
        self.whole = whole
        self.of: Slices = {}

    def product(self, name: str, left: Tensor, right: Tensor) -> None:
        """The gradient of a pointwise weight: `left` [out, M] times `right` [M, in]."""
        rows, columns = len(left), right.shape[1]
        whole = self.whole[name]
        fits = whole.shape[:2] == (rows, columns)
        grad = torch.empty_like(whole) if fits else torch.zeros_like(whole)
        torch.mm(left, right, out=grad.flatten(1)[:rows, :columns])
        self.of[name] = grad

    def bias(self, name: str, values_C: Tensor) -> None:
        """The gradient of a pointwise bias."""
        missing = len(self.whole[name]) - len(values_C)
        self.of[name] = F.pad(values_C, (0, missing)) if missing else values_C

    def norm(self, name: str, sums: Tensor, rows: int, stats: Tensor) -> Tensor:
        """Those of a batch norm; returns the coefficients of its input's gradient."""
        weight, bias = f"{name}.weight", f"{name}.bias"
        size = len(self.whole[weight])
        self.of[weight], self.of[bias], coefficients = kernels.norm_coefficients(sums, rows, stats, size)
        return coefficients


def _backward(
    grad_BCHW: Tensor, spec: BlockSpec, cut: Slices, s: _Saved, shape: DepthwiseShape, grads: _Gradients
) -> tuple[Tensor, Tensor]:
    """The gradients of the input's rows and of the depthwise kernel; those of the weights go into `grads`."""
    images, act = shape.images, spec.activation
    dout_MC = rows(grad_BCHW)
    sums = kernels.act_backward(dout_MC, s.projected_MC, images, s.project_stats, "none")
    coefficients = grads.norm("project.1", sums, len(dout_MC), s.project_stats)
    dprojected_MC = kernels.norm_backward(dout_MC, s.projected_MC, coefficients, keep=True)
    grads.product("project.0.weight", dprojected_MC.t(), s.gated_MC)
    du_MC = dprojected_MC @ cut["project.0.weight"].flatten(1)

    gate_BC = spread_BC = None
    if spec.se_channels:
        gate_BC = s.gate_BC
        dgate_BC = kernels.pool(s.convolved_MC, images, s.depthwise_stats, act, du_MC)
        spread_BC = _squeeze_excite_backward(dgate_BC, cut, s, grads).div_(shape.out_pixels)
    sums = kernels.act_backward(du_MC, s.convolved_MC, images, s.depthwise_stats, act, gate_BC, spread_BC)
    coefficients = grads.norm("depthwise.1", sums, len(du_MC), s.depthwise_stats)
    dkernel, dx_MC, sums = kernels.depthwise_backward(
        *(du_MC, s.convolved_MC, coefficients, s.expanded_MC, shape, cut[DEPTHWISE], s.expand_stats),
        act if spec.expand else "none",
    )
    if spec.expand:
        coefficients = grads.norm("expand.1", sums, len(dx_MC), s.expand_stats)
        dexpanded_MC = kernels.norm_backward(dx_MC, s.expanded_MC, coefficients)
        grads.product("expand.0.weight", dexpanded_MC.t(), s.x_MC)
        dx_MC = dexpanded_MC @ cut["expand.0.weight"].flatten(1)
    return (dx_MC.add_(dout_MC) if spec.residual else dx_MC), dkernel


def _squeeze_excite_backward(dgate_BC: Tensor, cut: Slices, s: _Saved, grads: _Gradients) -> Tensor:
    """The gradient of squeeze-excite's pooled input."""
    dlogits_BC = torch.ops.aten.hardsigmoid_backward(dgate_BC, s.gate_logits_BC)
    grads.product("se.expand.weight", dlogits_BC.t(), s.hidden_BS)
    grads.bias("se.expand.bias", dlogits_BC.sum(0))
    dhidden_BS = dlogits_BC @ cut["se.expand.weight"].flatten(1)
    dhidden_BS = torch.ops.aten.threshold_backward(dhidden_BS, s.hidden_BS, 0)
    grads.product("se.reduce.weight", dhidden_BS.t(), s.pooled_BC)
    grads.bias("se.reduce.bias", dhidden_BS.sum(0))
    dpooled_BC: Tensor = dhidden_BS @ cut["se.reduce.weight"].flatten(1)
    return dpooled_BC


class _MBConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, spec: BlockSpec, cut: Slices, names: tuple[str, ...], kernel: Tensor, *whole: Tensor
    ) -> Tensor:
        def statistics(y_MC: Tensor, name: str) -> Tensor:
            return kernels.norm_statistics(y_MC, _norm(cut, name), BN_MOMENTUM)

        out_BCHW, saved = _forward(x_BCHW, spec, cut, statistics)
        ctx.save_for_backward(*saved, kernel, *whole)
        ctx.spec, ctx.names, ctx.shape = spec, names, DepthwiseShape.of(x_BCHW, spec.stride)
        ctx.matrices = {name: cut[name].shape for name in names if cut[name].ndim == 4}
        return out_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        saved, kernel = _Saved(*tensors[: len(_Saved._fields)]), tensors[len(_Saved._fields)]
        whole = dict(zip(ctx.names, tensors[len(_Saved._fields) + 1 :], strict=True))
        cut = {name: first_entries(whole[name], size) for name, size in ctx.matrices.items()}
        grads, shape = _Gradients(whole), ctx.shape
        dx_MC, dkernel = _backward(grad_BCHW, ctx.spec, cut | {DEPTHWISE: kernel}, saved, shape, grads)
        dx_BCHW = maps(dx_MC, shape.images, shape.height, shape.width)
        return dx_BCHW, None, None, None, dkernel, *(grads.of[name] for name in ctx.names)


def first_entries(whole_OI11: Tensor, size: torch.Size) -> Tensor:
    """The view of a pointwise weight's first entries."""
    return whole_OI11[: size[0], : size[1]]
