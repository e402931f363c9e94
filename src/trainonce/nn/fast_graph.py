"""A network that is a list of operations, faster in training and in scoring: most of it by the native kernels.

Blocks of a pointwise, a depthwise and a pointwise convolution (inverted residuals, with squeeze-excite or without, and
without the first of the three) are one call each, and so is every other batch norm with its activation.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainonce.nn import native
from trainonce.nn.plain_graph import IMAGES, NORM, Argument, GraphSpec, Line, Program

ACTIVATIONS = {"relu.default": "relu", "relu6.default": "relu6", "hardswish.default": "h_swish"}
CLAMP = "hardtanh.default"
"""Between 0 and 6 it is relu6."""
CONV = "conv2d.default"
PADS = ("pad.default", "constant_pad_nd.default")
MEANS: dict[str, tuple[tuple[Argument, ...], ...]] = {
    "mean.dim": (((2, 3), True), ((-1, -2), True), ((-2, -1), True)),
    "adaptive_avg_pool2d.default": ((1,), ((1, 1),), ((1,),)),
}
"""Operations that take the mean of each channel, and with which arguments."""
LEARNED, MOVING = ("weight", "bias"), ("running_mean", "running_var")

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FusedNorm:
    """A batch norm and an activation, or `none`."""

    count: int
    """How many lines they are."""
    out: str
    """What the last of them makes."""
    reads: str
    """The map that they take."""
    norm: str
    """The name of the norm, which its tensors' names begin with."""
    kind: str
    """The activation, as the kernels name it."""
    momentum: float
    eps: float

    def __call__(self, values: Values, tensors: Mapping[str, Tensor], *, training: bool) -> Tensor | None:
        """What they make; None in evaluation, and where the map has not its channels innermost."""
        x: Tensor = values[self.reads]
        if not training or not _channels_last(x):
            return None
        norm = native.Norm(*(tensors[f"{self.norm}.{part}"] for part in (*LEARNED, *MOVING)))
        return native.norm_act(x, norm, self.kind, momentum=self.momentum, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class FusedBlock:
    """An MBConv block."""

    count: int
    """How many lines it is."""
    out: str
    """What the last of them makes."""
    reads: str
    """The value that it takes."""
    sizes: native.BlockSizes
    momentum: float
    kernel: str
    """The depthwise weight."""
    learned: Mapping[str, str]
    """The names of the other tensors, by those of the plain block's."""
    moving: Mapping[str, str]
    """The same of the running statistics."""

    def __call__(self, values: Values, tensors: Mapping[str, Tensor], *, training: bool) -> Tensor | None:
        """What it makes; None where the map has not its channels innermost, or is padded before an odd side."""
        x: Tensor = values[self.reads]
        if not _channels_last(x) or (self.sizes.uneven and (x.shape[2] % 2 or x.shape[3] % 2)):
            return None
        learned = {name: tensors[own] for name, own in self.learned.items()}
        moving = {name: tensors[own] for name, own in self.moving.items()}
        if training:
            return native.mbconv(x, self.sizes, tensors[self.kernel], learned, moving, self.momentum)
        return native.infer(x, self.sizes, {native.DEPTHWISE: tensors[self.kernel], **learned, **moving})


def _channels_last(x_BCHW: Tensor) -> bool:
    """Whether what is made of the map, channels innermost too, lies as it would without the kernels."""
    return x_BCHW.is_contiguous(memory_format=torch.channels_last)


class FastProgram(Program):
    """`Program`, of which runs of lines are one call of the native kernels each.

    The same function up to rounding. In training mode with gradients, and in evaluation mode without, where the kernels
    are usable; elsewhere, and where `seen` looks at each line, it does what `Program` does. All norms must be in the
    mode of the whole, and normalise by their own images alone.
    """

    def __init__(self, spec: GraphSpec) -> None:
        super().__init__(spec)
        self.runs = _RunReader(spec).runs()

    def __call__(
        self,
        x_BCHW: Tensor,
        tensors: Mapping[str, Tensor],
        layer: Callable[[Line, Tensor], Tensor],
        *,
        training: bool,
        seen: Callable[[Line, Any], None] | None = None,
    ) -> Tensor:
        """As `Program` does."""
        if seen is not None or training != torch.is_grad_enabled() or not native.usable(x_BCHW):
            return super().__call__(x_BCHW, tensors, layer, training=training, seen=seen)
        values: dict[str, Any] = {IMAGES: x_BCHW}
        steps = iter(self.steps)
        for step in steps:
            run = self.runs.get(step.line.out)
            made = None if run is None else run(values, tensors, training=training)
            if run is None or made is None:
                values[step.line.out], covered = step(values, tensors, layer, training=training), [step]
            else:
                values[run.out], covered = made, [step, *islice(steps, run.count - 1)]
            for name in (name for one in covered for name in one.done):
                values.pop(name, None)  # what a run makes on its way was never there
        logits: Tensor = values[self.output]
        return logits


class _OtherError(Exception):
    """Here is something else."""


class _Norm(NamedTuple):
    name: str
    momentum: float
    eps: float


class _Conv(NamedTuple):
    weight: str
    shape: tuple[int, ...]
    bias: str | None
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    @property
    def pointwise(self) -> bool:
        return self.shape[2:] == (1, 1) and self[3:] == ((1, 1), (0, 0), (1, 1), 1)


class _RunReader:
    """Reads lines one after the other, each of which takes what the one before made, as nothing else does."""

    def __init__(self, spec: GraphSpec) -> None:
        self.lines = spec.lines
        self.shapes = {tensor.name: tensor.shape for tensor in spec.tensors}
        self.readers = Counter(name for line in spec.lines for name in line.reads)
        self.readers[spec.output] += 1
        self.first = self.at = 0
        """The line that reading began with, and the next one."""
        self.value = ""
        """What the last line made."""

    def runs(self) -> dict[str, FusedBlock | FusedNorm]:
        """The runs of the network, by what their first line makes."""
        found: dict[str, FusedBlock | FusedNorm] = {}
        while self.at < len(self.lines):
            at = self.at
            run = self._run(at, self._block) or self._run(at, self._norm_act)
            if run is None:
                self.at = at + 1
            else:
                found[self.lines[at].out] = run
        return found

    def _run(self, at: int, read: Callable[[], FusedBlock | FusedNorm]) -> FusedBlock | FusedNorm | None:
        self.first = self.at = at
        self.value = next(iter(self.lines[at].reads), "")
        try:
            return read()
        except _OtherError:
            return None

    def _next(self) -> Line | None:
        return self.lines[self.at] if self.at < len(self.lines) else None

    def _take(self, *operations: str, readers: int = 1) -> Line:
        line = self._next()
        if line is None or line.op not in operations or line.reads[:1] != (self.value,):
            raise _OtherError
        if self.at > self.first and self.readers[self.value] != readers:
            raise _OtherError
        self.at, self.value = self.at + 1, line.out
        return line

    def _norm_act(self) -> FusedNorm:
        reads, (name, momentum, eps) = self.value, self._norm()
        try:
            kind = self._activation()
        except _OtherError:
            kind = "none"
        count = self.at - self.first
        return FusedNorm(count=count, out=self.value, reads=reads, norm=name, kind=kind, momentum=momentum, eps=eps)

    def _block(self) -> FusedBlock:
        reads, learned, norms = self.value, dict[str, str](), dict[str, _Norm]()
        kinds = set[str]()
        if self._at_pointwise():
            expand = self._pointwise()
            learned["expand.0.weight"], norms["expand.1"] = expand.weight, self._norm()
            kinds.add(self._activation())
            channels = expand.shape[1]
        pads = self._padding()
        depthwise = self._conv()
        uneven = _uneven(depthwise, pads)
        norms["depthwise.1"] = self._norm()
        kinds.add(self._activation())
        squeezed = self._squeeze(learned) if self.readers[self.value] > 1 else 0
        project = self._pointwise()
        learned["project.0.weight"], norms["project.1"] = project.weight, self._norm()
        if len(kinds) > 1 or len({norm[1:] for norm in norms.values()}) > 1:
            raise _OtherError
        stride, mid, out = depthwise.stride[0], depthwise.shape[0], project.shape[0]
        entering = channels if "expand.1" in norms else mid
        residual = (stride, entering) == (1, out) and self._added(reads)
        for name, norm in norms.items():
            learned |= {f"{name}.{part}": f"{norm.name}.{part}" for part in LEARNED}
        return FusedBlock(
            count=self.at - self.first,
            out=self.value,
            reads=reads,
            sizes=native.BlockSizes(
                mid_channels=mid,
                out_channels=out,
                se_channels=squeezed,
                stride=stride,
                activation=kinds.pop(),
                bn_eps=norms["project.1"].eps,
                residual=residual,
                uneven=uneven,
            ),
            momentum=norms["project.1"].momentum,
            kernel=depthwise.weight,
            learned=learned,
            moving={f"{name}.{part}": f"{norm.name}.{part}" for name, norm in norms.items() for part in MOVING},
        )

    def _norm(self) -> _Norm:
        line = self._take(NORM)
        _, name, momentum, eps = line.args
        if f"{name}.weight" not in self.shapes or not isinstance(momentum, float):
            raise _OtherError
        return _Norm(str(name), momentum, float(eps))  # type: ignore[arg-type]

    def _activation(self) -> str:
        line = self._next()
        if line is not None and line.op == CLAMP and line.args[1:] == (0.0, 6.0):
            self._take(CLAMP)
            return "relu6"
        return ACTIVATIONS[self._take(*ACTIVATIONS).op]

    def _at_pointwise(self) -> bool:
        line = self._next()
        return line is not None and line.op == CONV and self._conv_of(line).pointwise

    def _pointwise(self, *, bias: bool = False) -> _Conv:
        conv = self._conv()
        if not conv.pointwise or (conv.bias is not None) != bias:
            raise _OtherError
        return conv

    def _conv(self) -> _Conv:
        return self._conv_of(self._take(CONV))

    def _conv_of(self, line: Line) -> _Conv:
        if line.kwargs:
            raise _OtherError
        _, weight, *others = line.args
        name = str(weight).removeprefix("%")
        if name not in self.shapes:  # a weight that is made on the way
            raise _OtherError
        bias: Any = others[0] if others else None
        rest: list[Any] = [value * 2 if isinstance(value, tuple) and len(value) == 1 else value for value in others[1:]]
        return _Conv(name, self.shapes[name], None if bias is None else bias.removeprefix("%"), *rest)

    def _padding(self) -> tuple[int, ...]:
        """Columns before and after the map and rows above and below it that are padded by a line of its own."""
        line = self._next()
        if line is None or line.op not in PADS:
            return (0, 0, 0, 0)
        _, pads, *how = self._take(*PADS).args
        if any(value not in ("constant", 0, None) for value in how):
            raise _OtherError
        return pads  # type: ignore[return-value]

    def _squeeze(self, learned: dict[str, str]) -> int:
        """Squeeze-excite, from the map's mean to its product with the gate; gives the channels that it squeezes to."""
        scaled = self.value
        mean = self._take(*MEANS, readers=2)
        if mean.args[1:] not in MEANS[mean.op]:
            raise _OtherError
        reduce = self._pointwise(bias=True)
        self._take("relu.default")
        expand = self._pointwise(bias=True)
        self._take("hardsigmoid.default")
        line = self._next()
        if line is None or line.op != "mul.Tensor" or sorted(line.reads) != sorted((scaled, self.value)):
            raise _OtherError
        if self.readers[self.value] > 1:
            raise _OtherError
        self.at, self.value = self.at + 1, line.out
        for name, conv in (("reduce", reduce), ("expand", expand)):
            learned |= {f"se.{name}.weight": conv.weight, f"se.{name}.bias": str(conv.bias)}
        return reduce.shape[0]

    def _added(self, entered: str) -> bool:
        """Whether what entered is added next, which is read then."""
        line = self._next()
        if line is None or line.op != "add.Tensor" or line.kwargs or self.readers[self.value] > 1:
            return False
        if sorted(line.reads) != sorted((entered, self.value)):
            return False
        self.at, self.value = self.at + 1, line.out
        return True


def _uneven(conv: _Conv, pads: tuple[int, ...]) -> bool:
    """Whether a depthwise convolution, with what was padded before it, pads less before the map than after it."""
    channels, inside, side, other = conv.shape
    half = side // 2
    known = inside == 1 and conv.groups == channels and side == other and side % 2 == 1 and conv.bias is None
    if not known or conv.dilation != (1, 1) or conv.stride not in ((1, 1), (2, 2)):
        raise _OtherError
    around = (conv.padding, pads)
    if around in (((half, half), (0, 0, 0, 0)), ((0, 0), (half,) * 4)):
        return False
    if conv.stride == (2, 2) and half and around == ((0, 0), (half - 1, half, half - 1, half)):
        return True
    raise _OtherError
