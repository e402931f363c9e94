"""A person's own network as a supernet, whose largest subnet is that network."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import torch
from pydantic import Field, model_validator
from pydantic_core import CoreSchema, core_schema
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.cost.macs import CostModel, counted_cost
from trainonce.errors import UserError
from trainonce.models.supernet import FamilySettings, Supernet, Weigh
from trainonce.models.traced.axes import Dimension
from trainonce.models.traced.layout import Elasticity, Kernel, TracedLayout, refuse_rigid, tensors_of
from trainonce.models.traced.resolutions import RESOLUTION, Resolutions, check_same, ends_at_each_size, smaller_sides
from trainonce.models.traced.rules import OUTPUT, RULES
from trainonce.models.traced.tracing import trace
from trainonce.nn.batch_norm import Synchronisable, synchronised_batch_norm
from trainonce.nn.fast_graph import MOVING, FastProgram
from trainonce.nn.ops import Slices
from trainonce.nn.plain import resize
from trainonce.nn.plain_graph import DROPOUT, NORM, STATISTICS, GraphSpec, Line, Program, TensorSpec, place
from trainonce.sampling import MacsSampler
from trainonce.space import Architecture, SearchSpace

T = TypeVar("T", bound="Traced")

NUMBERED = re.compile(r"((?:[^.]+\.)*?\d+(?:\.\d+)*)\.")
"""The outermost module of a path that has a number for a name, with the numbers that follow: `layer1.0.conv`."""


def _graph(value: Any) -> GraphSpec:
    try:
        return value if isinstance(value, GraphSpec) else GraphSpec.from_json(value)
    except (TypeError, KeyError) as error:
        raise ValueError(f"these are not the operations of a network: {error}") from error


class AsJson:
    """How a network's operations stand in settings that are written down."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(GraphSpec.to_json)
        return core_schema.no_info_plain_validator_function(_graph, serialization=written)


class Origin(NamedTuple):
    """Where an operation comes from: the module of the network, and the line in its source."""

    module: str
    source: str


class TracedSettings(FamilySettings):
    """The operations of a network, and what of it is elastic. `elastic` makes them."""

    network: Annotated[GraphSpec, AsJson]
    """The largest subnet."""
    smaller: tuple[Annotated[GraphSpec, AsJson], ...] = ()
    """The same network at each of the lower `resolutions`: what it does with smaller images."""
    origins: dict[str, Origin] = Field(default_factory=dict)
    """Where each operation comes from, by what it makes."""
    widths: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (25, 50, 75)
    """Widths of an axis, in percent of its channels, rounded up to `multiple`; all its channels come besides."""
    multiple: int = Field(8, ge=1)
    """What numbers of channels are multiples of, where they are fewer than all."""
    least_depth: int = Field(50, ge=0, le=100)
    """How many of a stage's residual branches stay, in percent, rounded down."""
    stages: bool = False
    """Whether the channels that residual sums share are elastic too, not only those inside of blocks."""
    kernels: bool = False
    """Whether depthwise convolutions of 5 x 5 and more have smaller kernels too."""
    off: tuple[str, ...] = ()
    """Patterns of choices that are not elastic: `layer1.*`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_same(self.network, self.smaller)
        return self

    @classmethod
    def for_images(
        cls, *, image_size: int, in_channels: int, num_classes: int, geometry: str | None = None, **fields: Any
    ) -> Self:
        """Settings of a network that is given: `network` must be among the fields, and be for such images."""
        if "network" not in fields:
            raise UserError(
                "the family `traced` is a network of your own: make it with trainonce.models.traced.elastic"
            )
        network: GraphSpec = _graph(fields["network"])
        if (network.resolution, network.in_channels, network.num_classes) != (image_size, in_channels, num_classes):
            raise UserError(
                f"the network is for {network.num_classes} classes of images with {network.in_channels} channels and "
                f"{network.resolution} pixels, not for {num_classes} of {in_channels} and {image_size}"
            )
        return super().for_images(
            image_size=image_size, in_channels=in_channels, num_classes=num_classes, geometry=geometry, **fields
        )


class TracedNorm(Synchronisable):
    """The tensors of a batch norm, of which an architecture uses some."""

    def __init__(self, tensors: Mapping[str, TensorSpec]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            place(self, name, tensor.empty())

    def forward(self, x_BCHW: Tensor, cut: Mapping[str, Tensor], momentum: float, eps: float) -> Tensor:
        """Normalise [B, C, H, W] with `weight`, `bias`, `running_mean` and `running_var` of C channels.

        In training mode by the batch, or by the images of all ranks, moving the running statistics that are given.
        """
        weight, bias = cut.get("weight"), cut.get("bias")
        mean, var = cut["running_mean"], cut["running_var"]
        if self.training and self.ranks is not None:
            weight = torch.ones_like(mean) if weight is None else weight
            bias = torch.zeros_like(mean) if bias is None else bias
            return synchronised_batch_norm(
                x_BCHW, mean, var, weight, bias, momentum=momentum, eps=eps, ranks=self.ranks
            )
        return F.batch_norm(x_BCHW, mean, var, weight, bias, self.training, momentum, eps)


class Traced(Supernet):
    """The supernet of a network that was traced: `elastic` makes one of a network with its weights.

    Its weights lie in `network`, under the names and in the order that they have in the network itself. Which channels
    a width keeps is said by an order of each axis; the channels that are kept stay in the order of the network, so
    that the largest subnet is the network to the last bit, whatever the order.
    """

    family = "traced"
    settings_type = TracedSettings
    settings: TracedSettings

    @torch.random.fork_rng(devices=[])
    def __init__(self, settings: TracedSettings, *, seed: int = 0) -> None:
        """Weights are drawn from `seed` alone. Raises `UserError` where nothing of the network is elastic."""
        super().__init__(settings, seed=seed)
        elasticity = Elasticity(
            widths=settings.widths,
            multiple=settings.multiple,
            least_depth=settings.least_depth,
            stages=settings.stages,
            kernels=settings.kernels,
            off=settings.off,
        )
        modules = {name: origin.module for name, origin in settings.origins.items()}
        sizes = Resolutions([TracedLayout(spec, elasticity, modules) for spec in (*settings.smaller, settings.network)])
        self.layout = sizes.largest
        self.space: SearchSpace = sizes.space
        self.cost: CostModel = sizes.cost
        refuse_rigid(self.layout)
        self.network = _tensors(settings.network)
        for width in self.layout.widths:
            place(self, f"order.{width.choice}", torch.arange(width.units))
        for kernel in self.layout.kernels:
            for size in kernel.values[:-1]:
                place(self, _matrix(kernel.choice, size), nn.Parameter(torch.empty(size**2, size**2)))
        self._kernels = {kernel.weight: kernel for kernel in self.layout.kernels}
        dropped = {line.out: line.args[1] for line in settings.network.lines if line.op == DROPOUT}
        self.dropouts = nn.ModuleDict({out: nn.Dropout(p) for out, p in dropped.items()})  # type: ignore[arg-type]
        self._described = lru_cache(maxsize=4096)(sizes.describe)
        self._programs = lru_cache(maxsize=256)(Program)
        self._fast_programs = lru_cache(maxsize=256)(FastProgram)
        self._cuts: dict[Architecture, dict[str, tuple[Tensor | int | None, ...]]] = {}
        self._cut_in: tuple[tuple[int, int], ...] = ()
        self.reset_parameters(seed)

    @property
    def ways_to_smaller(self) -> str:
        """As `Supernet.ways_to_smaller`: stages where they are rigid, and a network from nothing."""
        ways = "--image-size" if self.settings.stages else "--stages or --image-size"
        return f"with {ways}, or begin without a network of your own: one from nothing can be smaller"

    def part_of(self, parameter: str) -> str:
        """The numbered module of the network that it lies in, such as `layer1.0`, else the module that has it."""
        path = parameter.removeprefix("network.")
        numbered = NUMBERED.match(path)
        return numbered[1] if numbered else path.rpartition(".")[0] or path

    def describe(self, arch: Architecture) -> GraphSpec:
        return self._described(self._inside(self.space.check(arch)))

    def _inside(self, arch: Architecture) -> Architecture:
        """The values of the network's own choices: those of the space, unless that has other ones."""
        return arch

    def _kept_widths(self, kept: SearchSpace, choice: str) -> tuple[int, ...]:
        """The values of a width of the network in a part of the space."""
        return kept[choice].values

    def forward(self, x_BCHW: Tensor, arch: Architecture) -> Tensor:
        cut = self.slices(arch)

        def layer(line: Line, x: Tensor) -> Tensor:
            if line.op == DROPOUT:
                dropped: Tensor = self.dropouts[line.out](x)
                return dropped
            _, name, momentum, eps = line.args
            norm, prefix = self.network.get_submodule(str(name)), f"{name}."
            assert isinstance(norm, TracedNorm)
            own = {part: cut[prefix + part] for part in STATISTICS if prefix + part in cut}
            made: Tensor = norm(x, own, momentum, eps)
            return made

        spec = self.describe(arch)
        fast = self.training and not self._synchronised()  # in evaluation it is the extracted network to the last bit
        program = self._fast_programs(spec) if fast else self._programs(spec)
        logits = program(self.sized(x_BCHW, spec.resolution), cut, layer, training=self.training)
        if self.training:
            moved = [f"{line.args[1]}.{part}" for line in spec.lines if line.op == NORM for part in MOVING]
            self.keep_statistics(arch, {name: cut[name] for name in moved})
        return logits

    def _synchronised(self) -> bool:
        """Whether its batch norms normalise by the images of other ranks too."""
        return any(isinstance(layer, Synchronisable) and layer.synchronised for layer in self.network.modules())

    def slices(self, arch: Architecture) -> Slices:
        cuts = self._cuts_for(arch)
        cut = {name: _cut(tensor, cuts[name]) for name, tensor in self._tensors(arch)}
        for name, kernel in self._kernels.items():
            if name in cut:
                cut[name] = self._smaller(cut[name], kernel, arch[kernel.choice])
        return cut

    def _smaller(self, weight_C1KK: Tensor, kernel: Kernel, size: int) -> Tensor:
        """A depthwise weight as a smaller kernel: its centre, size by size, each times a matrix (OFA, section 3.3)."""
        for smaller in reversed([value for value in kernel.values[:-1] if value >= size]):
            centre = weight_C1KK[..., 1:-1, 1:-1].flatten(2)
            matrix = self.get_parameter(_matrix(kernel.choice, smaller))
            weight_C1KK = F.linear(centre, matrix).view(len(centre), 1, smaller, smaller)
        return weight_C1KK

    @torch.no_grad()
    def keep_statistics(self, arch: Architecture, statistics: Mapping[str, Tensor]) -> None:
        """Write statistics of an architecture's batch norms, by their names, where it reads them."""
        cuts, own = self._cuts_for(arch), dict(self.network.named_buffers())
        for name, tensor in statistics.items():
            (along,) = cuts[name]
            if isinstance(along, Tensor):
                own[name].index_copy_(0, along, tensor)
            elif _cut(own[name], cuts[name]).data_ptr() != tensor.data_ptr():
                _cut(own[name], cuts[name]).copy_(tensor)

    def shared_name(self, arch: Architecture, name: str) -> str:
        return f"network.{name}"

    @torch.no_grad()
    def sort_channels(self, kept: SearchSpace, weigh: Weigh = torch.abs) -> None:
        """Let narrower widths keep the channels with the largest weights.

        What a channel weighs is the sum of what its weights count in each tensor that has it, in parts of that tensor's
        mean. Between two widths of `kept` nothing moves, so that its subnets stay what they are.
        """
        counted = {name: weigh(parameter) for name, parameter in self.network.named_parameters()}
        for width in self.layout.widths:
            order = self._order(width.choice)
            weighed = torch.zeros(width.units, device=order.device)
            for name, counts in counted.items():
                for dim, dimension in enumerate(self.layout.dimensions[name]):
                    weighed += _of_units(counts, dim, dimension, width.axis, self.layout)
            edges = sorted({0, width.units, *self._kept_widths(kept, width.choice)})
            for low, high in pairwise(edges):
                band = order[low:high]
                order[low:high] = band[weighed[band].argsort(descending=True, stable=True)]

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        for kernel in self.layout.kernels:
            for size in kernel.values[:-1]:
                nn.init.eye_(self.get_parameter(_matrix(kernel.choice, size)))
        generator = torch.Generator().manual_seed(seed)
        scales = _scales(self.settings.network)
        for name, tensor in self.network.state_dict(keep_vars=True).items():
            fresh = torch.zeros(tensor.shape, dtype=tensor.dtype)
            if name in scales:
                fresh.fill_(1)
            elif tensor.ndim == 4:
                nn.init.kaiming_normal_(fresh, mode="fan_out", generator=generator)
            elif tensor.ndim > 1 and fresh.is_floating_point():
                bound = tensor[0].numel() ** -0.5
                nn.init.uniform_(fresh, -bound, bound, generator=generator)
            tensor.copy_(fresh)

    def head(self) -> frozenset[str]:
        classes = self._classes()
        return frozenset(
            f"network.{name}"
            for name, _ in self.network.named_parameters()
            if any(_is_of(dimension, classes) for dimension in self.layout.dimensions[name])
        )

    def with_head(self, num_classes: int, *, seed: int = 0, **fields: Any) -> Self:
        classes, spec = self._classes(), self.settings.network
        if fields.get("resolutions", self.settings.resolutions) != self.settings.resolutions:
            sides = ", ".join(map(str, self.settings.resolutions))
            raise UserError(f"this network was traced at {sides} pixels: give it images of {spec.resolution}")
        tensors = tuple(
            replace(
                t,
                shape=tuple(
                    num_classes if _is_of(dimension, classes) else size
                    for dimension, size in zip(self.layout.dimensions[t.name], t.shape, strict=True)
                ),
            )
            for t in spec.tensors
        )
        *smaller, network = (
            replace(one, num_classes=num_classes, tensors=tensors) for one in (*self.settings.smaller, spec)
        )
        changed = {"network": network, "smaller": tuple(smaller), "num_classes": num_classes, **fields}
        settings = self.settings.model_copy(update=changed)
        return self._copied_into(type(self)(settings, seed=seed))

    def _classes(self) -> set[int]:
        """The axes that the logits have. Raises `UserError` where they are tied to something else."""
        found = self.layout.found
        logits = found.of(f"%{self.settings.network.output}")[1]
        axes = {segment.axis for segment in logits}
        if any(found.axes.reason(axis) != OUTPUT for axis in axes) or len(logits) != 1:
            raise UserError("the classes of this network are tied to its other channels: it cannot be given others")
        return axes

    def _tensors(self, arch: Architecture) -> Iterable[tuple[str, Tensor]]:
        own = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        return (
            (t.name, own[t.name]) for t in self.describe(arch).tensors if not t.name.endswith(".num_batches_tracked")
        )

    def _order(self, choice: str) -> Tensor:
        return self.get_buffer(f"order.{choice}")

    def _cuts_for(self, arch: Architecture) -> dict[str, tuple[Tensor | int | None, ...]]:
        """For each tensor of an architecture, what of each dimension it uses: all, the first, or the places listed."""
        arch = self._inside(arch)
        orders = [self._order(width.choice) for width in self.layout.widths]
        now = tuple((order.data_ptr(), order._version) for order in orders)
        if now != self._cut_in or len(self._cuts) > 1000:  # channels have been ordered, loaded, moved or copied
            self._cuts, self._cut_in = {}, now
        if arch not in self._cuts:
            used = {
                width.axis: self._order(width.choice)[: arch[width.choice]].sort().values
                for width in self.layout.widths
                if arch.get(width.choice, width.units) < width.units
            }
            self._cuts[arch] = {
                t.name: tuple(self._places(dimension, used) for dimension in self.layout.dimensions[t.name])
                for t in self._described(arch).tensors
            }
        return self._cuts[arch]

    def _places(self, dimension: Dimension, used: Mapping[int, Tensor]) -> Tensor | int | None:
        if not any(segment.axis in used for segment in dimension):
            return None
        found, start = [], 0
        for axis, each in dimension:
            units = used.get(
                axis, torch.arange(self.layout.found.axes.units(axis), device=next(self.parameters()).device)
            )
            runs = torch.arange(each, device=units.device)
            found.append((start + units[:, None] * each + runs).flatten())
            start += self.layout.found.axes.units(axis) * each
        places = torch.cat(found)
        first = torch.arange(len(places), device=places.device)
        return len(places) if torch.equal(places, first) else places


def _matrix(choice: str, size: int) -> str:
    """What makes the kernel of a size of the next larger one's centre."""
    return f"matrices.{choice}.to_{size}"


def _is_of(dimension: Dimension, axes: set[int]) -> bool:
    return any(segment.axis in axes for segment in dimension)


def _cut(tensor: Tensor, along: tuple[Tensor | int | None, ...]) -> Tensor:
    """A tensor's first or listed places along each dimension, contiguous. What is not cut is the tensor itself."""
    for dim, places in enumerate(along):
        if isinstance(places, int):
            tensor = tensor.narrow(dim, 0, places)
        elif places is not None:
            tensor = tensor.index_select(dim, places)
    return tensor if tensor.ndim == 1 else tensor.contiguous()


def _of_units(counts: Tensor, dim: int, dimension: Dimension, axis: int, layout: TracedLayout) -> Tensor:
    """The sums of a tensor's numbers for each unit of an axis along one dimension, in parts of their mean."""
    total = counts.new_zeros(layout.found.axes.units(axis))
    start = 0
    for segment in dimension:
        units = layout.found.axes.units(segment.axis)
        if segment.axis == axis:
            run = counts.narrow(dim, start, units * segment.each).movedim(dim, 0)
            sums = run.reshape(units, -1).sum(1)
            total += sums / sums.mean().clamp_min(1e-12)
        start += units * segment.each
    return total


def _tensors(spec: GraphSpec) -> nn.Module:
    """The tensors of a network under their names."""
    holder = nn.Module()
    of = {tensor.name: tensor for tensor in spec.tensors}
    norms = dict.fromkeys(str(line.args[1]) for line in spec.lines if line.op == NORM)  # ranks need one order
    for name in norms:
        own = {
            t.removeprefix(f"{name}."): of[t]
            for line in spec.lines
            if line.op == NORM and line.args[1] == name
            for t in tensors_of(line, of)
        }
        place(holder, name, TracedNorm(own))
    for tensor in spec.tensors:
        if tensor.name.rpartition(".")[0] not in norms:
            place(holder, tensor.name, tensor.empty())
    return holder


def _scales(spec: GraphSpec) -> set[str]:
    """The tensors that are 1 in a norm that changes nothing."""
    known = {tensor.name for tensor in spec.tensors}
    scales = {f"{line.args[1]}.{part}" for line in spec.lines if line.op == NORM for part in ("weight", "running_var")}
    at = {"batch_norm.default": (1, 4), "layer_norm.default": (2,), "group_norm.default": (2,)}
    for line in spec.lines:
        read = [line.args[number] for number in at.get(line.op, ()) if len(line.args) > number]
        scales |= {argument[1:] for argument in read if isinstance(argument, str)}
    return scales & known


def elastic(
    model: nn.Module,
    example_BCHW: Tensor,
    *,
    num_classes: int | None = None,
    resolutions: Sequence[int] | None = (),
    seed: int = 0,
    **fields: Any,
) -> Traced:
    """The supernet whose largest subnet is `model`, to the last bit in evaluation mode. The model stays as it is.

    `example_BCHW` is a batch of square images of the size that the network will see. Subnets may take smaller
    images too, of the sides in `resolutions`: the network is traced at each. None stands for `smaller_sides` where the
    network can take those, and for its own size alone where it cannot, or where a pattern in `off` matches
    "resolution". `fields` are those of `TracedSettings`. With `num_classes` of another number than the network's, its
    last layer is drawn anew from `seed`. Raises `UserError` that says what of the network cannot be followed, that
    nothing of it is elastic, or that `off` and `resolutions` contradict each other.
    """
    if any(fnmatchcase(RESOLUTION, pattern) for pattern in fields.get("off", ())):
        if resolutions:
            raise UserError(f"the resolution is turned off, but images of {sorted(resolutions)} pixels are asked for")
        resolutions = ()
    make = partial(supernet_of, Traced, model, example_BCHW, seed=seed, **fields)
    if resolutions is None:
        try:
            net = make(resolutions=smaller_sides(example_BCHW.shape[-1]))
            MacsSampler(net.cost)  # may be refused with them where it is not without
        except UserError:
            net = make(resolutions=())
    else:
        net = make(resolutions=resolutions)
    if num_classes is not None and num_classes != net.settings.num_classes:
        return net.with_head(num_classes, seed=seed)
    return net


def supernet_of(
    family: type[T], model: nn.Module, example_BCHW: Tensor, *, resolutions: Sequence[int], seed: int = 0, **fields: Any
) -> T:
    """The supernet of `family` whose largest subnet is `model`: see `elastic`."""
    traced = trace(model, example_BCHW)
    spec, state = traced.spec, traced.state
    sides = sorted({*resolutions, spec.resolution})
    if sides[-1] != spec.resolution or sides[0] < 1:
        raise UserError(f"the resolutions must be from 1 to the {spec.resolution} pixels of the images, not {sides}")
    settings = family.settings_type.for_images(
        image_size=spec.resolution,
        in_channels=spec.in_channels,
        num_classes=spec.num_classes,
        network=spec,
        resolutions=tuple(sides),
        smaller=tuple(_at(model, example_BCHW, side) for side in sides[:-1]),
        origins={name: Origin(*origin) for name, origin in traced.places.items()},
        **fields,
    )
    net = family(settings, seed=seed)
    net.network.load_state_dict(state)
    _refuse_uncounted(net)
    return net


def _at(model: nn.Module, example_BCHW: Tensor, side: int) -> GraphSpec:
    """What the network does with images of another size."""
    try:
        return trace(model, resize(example_BCHW, side)).spec
    except UserError as error:
        raise UserError(f"the network cannot take images of {side} pixels: {error}") from error


def _refuse_uncounted(net: Traced) -> None:
    """Raise `UserError` where an end of the space does not cost what torch counts: by an operation not known here."""
    for arch in ends_at_each_size(net.space):
        ours, counted = net.cost_of(arch), counted_cost(net.describe(arch))
        if ours != counted:
            unknown = sorted({line.op for line in net.settings.network.lines if line.op not in RULES})
            raise UserError(
                f"what subnets of this network cost cannot be told: torch counts {counted.macs:,} MACs and "
                f"{counted.params:,} parameters for {arch}, its operations as they are known {ours.macs:,} and "
                f"{ours.params:,}; unknown are {', '.join(unknown) or 'none'}"
            )
