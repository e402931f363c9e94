"""Blocks captured once in each of their forms and then replayed, where every step trains other subnets.

There are far more subnets than graphs that could be kept, but a block has few forms (in the paper's space nine, by
kernel size and expand ratio), and the form and the images' size are all that its work depends on. So each form is
captured when it is first met, forward and backward, and a subnet is a chain of replays. What lies before and after the
blocks (stem, head, loss) runs as it does without graphs.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainonce.nn.blocks import ElasticBlock
from trainonce.nn.precision import autocast
from trainonce.training.graphs import Capture, Recorder, not_captured

ALIGNED = 64
"""Gradients begin at multiples of so many numbers, where kernels read fastest."""


class BlockGraphs:
    """The blocks of a network in training, replayed.

    Parameters and running statistics are read and moved where they lie, so they must stay there: values may be
    loaded into them, other tensors may not take their place. The blocks' gradients lie at fixed places too; they are
    good until the next backward pass after gradients were dropped.
    """

    def __init__(self, net: nn.Module, capture: Capture) -> None:
        self.replays = {
            module: _Block(module, capture.recorder()) for module in net.modules() if isinstance(module, ElasticBlock)
        }
        """What is lent to the blocks for a step. Passes must not interleave: each one's backward, where it has one,
        goes before the next one's forward. They raise `RunError` where a block cannot be captured."""


class _Gradients:
    """The gradients of a block's parameters, at fixed places in one stretch of memory, to which backward passes add."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        assert all(parameter.is_contiguous() for parameter in parameters)
        self.parameters = parameters
        sizes = [-(-parameter.numel() // ALIGNED) * ALIGNED for parameter in parameters]
        self.all = parameters[0].new_zeros(sum(sizes))
        self.places = [
            piece[: parameter.numel()].view_as(parameter)
            for parameter, piece in zip(parameters, torch.split(self.all, sizes), strict=True)
        ]

    def begin(self) -> None:
        """Before a backward pass: let the sums start from zero where gradients have been dropped since the last."""
        attached = [place for p, place in zip(self.parameters, self.places, strict=True) if p.grad is not None]
        assert all(p.grad is None or p.grad is place for p, place in zip(self.parameters, self.places, strict=True))
        if not attached:
            self.all.zero_()

    def attach(self, used: Sequence[int]) -> None:
        """After a backward pass: let the parameters that it used have their sums as gradients."""
        for number in used:
            self.parameters[number].grad = self.places[number]


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A block in one form at one size of images: what its two graphs read and write, and what replays them."""

    x_BCHW: Tensor
    out_BCHW: Tensor
    grad_out_BCHW: Tensor
    grad_x_BCHW: Tensor
    forward: Callable[[], None]
    backward: Callable[[], None]
    used: tuple[int, ...]
    """Which of the block's parameters it has gradients for."""


class _Block:
    """A block that replays its forms. They share a recorder, since no two are ever between forward and backward."""

    def __init__(self, module: ElasticBlock, recorder: Recorder) -> None:
        self.module, self.recorder = module, recorder
        self.forms: dict[Hashable, _Form] = {}
        self.inputs: dict[Hashable, Tensor] = {}
        self.gradients = _Gradients(list(module.parameters()))
        self.turn = 0

    def __call__(self, x_BCHW: Tensor, spec: Hashable) -> Tensor:
        assert x_BCHW.requires_grad or not torch.is_grad_enabled(), "the block's own gradients would be lost"
        size = (x_BCHW.shape, x_BCHW.stride(), x_BCHW.dtype)
        key = (spec, size, torch.is_autocast_enabled(x_BCHW.device.type))
        if key not in self.forms:
            if size not in self.inputs:
                self.inputs[size] = torch.empty_strided(*size[:2], dtype=size[2], device=x_BCHW.device)
            with torch.no_grad():
                x_static = self.inputs[size].copy_(x_BCHW)
            self.forms[key] = self._record(x_static.requires_grad_(), spec)
        out: Tensor = _Replay.apply(x_BCHW, self, self.forms[key])  # type: ignore[no-untyped-call]
        return out

    def _record(self, x_BCHW: Tensor, spec: Hashable) -> _Form:
        """Capture a form. It is done once first, without a trace, to ready the device."""
        made, grad_out = x_BCHW, x_BCHW

        def forward() -> Sequence[Tensor]:
            nonlocal made
            with torch.enable_grad():
                made = self.module.compute(x_BCHW, spec)
            return [made.detach()]

        def gradients() -> Sequence[Tensor | None]:
            with autocast("float32", x_BCHW.device):  # as a backward pass has it
                inputs = [x_BCHW, *self.gradients.parameters]
                return torch.autograd.grad(made, inputs, grad_out, allow_unused=True)

        def backward() -> Sequence[Tensor]:
            of_x, *of_parameters = gradients()
            assert of_x is not None
            for place, gradient in zip(self.gradients.places, of_parameters, strict=True):
                if gradient is not None:
                    place.add_(gradient)
            return [of_x]

        def once() -> Sequence[Tensor | None]:
            nonlocal grad_out
            forward()
            grad_out = torch.zeros_like(made)
            return gradients()

        statistics = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        _, *of_parameters = self.recorder.aside(once)
        for buffer, value in statistics:
            buffer.copy_(value)
        try:
            (out_BCHW,), replay_forward = self.recorder.record(forward)
            (grad_x_BCHW,), replay_backward = self.recorder.record(backward)
        except RuntimeError as error:
            raise not_captured("a block", error) from error
        return _Form(
            x_BCHW=x_BCHW.detach(),
            out_BCHW=out_BCHW,
            grad_out_BCHW=grad_out,
            grad_x_BCHW=grad_x_BCHW,
            forward=replay_forward,
            backward=replay_backward,
            used=tuple(number for number, gradient in enumerate(of_parameters) if gradient is not None),
        )

    def forward(self, form: _Form, x_BCHW: Tensor) -> Tensor:
        """Replay a forward pass; its output is good until the next pass through this block."""
        self.turn += 1
        form.x_BCHW.copy_(x_BCHW)
        form.forward()
        return form.out_BCHW.detach()

    def backward(self, form: _Form, turn: int, grad_BCHW: Tensor) -> Tensor:
        """Replay the backward pass of a forward pass, which must be the last one through this block."""
        assert turn == self.turn, "another pass went through this block between a forward pass and its backward pass"
        self.gradients.begin()
        form.grad_out_BCHW.copy_(grad_BCHW)
        form.backward()
        self.gradients.attach(form.used)
        return form.grad_x_BCHW.detach()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, block: _Block, form: _Form) -> Tensor:
        out_BCHW = block.forward(form, x_BCHW)
        ctx.block, ctx.form, ctx.turn = block, form, block.turn
        return out_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, None, None]:
        return ctx.block.backward(ctx.form, ctx.turn, grad_BCHW), None, None
