"""The search space of a traced network: which of its axes and branches are choices, and what they cost."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from itertools import product

from trainonce.cost.macs import Cost, CostModel, CostTerm
from trainonce.errors import UserError
from trainonce.models.traced.analysis import BATCH, Analysis, Dimensions
from trainonce.models.traced.axes import Dimension
from trainonce.models.traced.following import followed
from trainonce.models.traced.residuals import Home, Residuals, find_residuals, without
from trainonce.models.traced.rules import analyse
from trainonce.nn.plain_graph import IMAGES, NORM, GraphSpec, Line, TensorSpec
from trainonce.space import Architecture, Choice, SearchSpace

FREE = "widths of stages are not asked for (`stages=True`)"
OFF = "turned off"


@dataclass(frozen=True, kw_only=True)
class Elasticity:
    """What of a network is to be elastic."""

    widths: tuple[int, ...]
    """Widths of an axis in percent of its channels, rounded up to `multiple`; all its channels come besides."""
    multiple: int
    least_depth: int
    """Percent of a stage's residual branches that stay, rounded down."""
    stages: bool
    """Whether channels that residual sums share are elastic too."""
    kernels: bool
    """Whether depthwise convolutions of 5 x 5 and more have smaller kernels too."""
    off: tuple[str, ...]
    """Patterns of choices that are not to be elastic."""


@dataclass(frozen=True)
class Width:
    """An elastic axis."""

    choice: str
    axis: int
    units: int
    values: tuple[int, ...]
    home: Home | None
    line: str
    """What is made by the first line that has it."""


@dataclass(frozen=True)
class Kernel:
    """A depthwise convolution whose kernel is elastic: `axis` is that of its height and width."""

    choice: str
    axis: int
    values: tuple[int, ...]
    home: Home | None
    weight: str
    line: str
    """What it makes."""


@dataclass(frozen=True)
class Rigid:
    """An axis that stays, and why."""

    name: str
    channels: int
    reason: str
    line: str


class TracedLayout:
    """The axes and branches of a network as choices."""

    def __init__(self, spec: GraphSpec, elasticity: Elasticity, modules: Mapping[str, str]) -> None:
        """`modules` names the module of the network that each line belongs to, by what the line makes."""
        self.spec, self.elasticity, self.modules = spec, elasticity, modules
        self.found: Analysis = analyse(spec)
        self.residuals: Residuals = find_residuals(self.found)
        self.kernels = self._kernels() if elasticity.kernels else []
        self.dimensions: dict[str, Dimensions] = {
            name: tuple(self.found.axes.resolve(d) for d in dimensions)
            for name, dimensions in self.found.tensors.items()
        }
        self.position = {line.out: number for number, line in enumerate(spec.lines)}
        self.depths = self._depths()
        self.widths, self.rigid = self._widths()
        self.elastic_axes: list[Width | Kernel] = [*self.widths, *self.kernels]
        self.space = SearchSpace(tuple(self._choices()))

    # What is elastic

    def _depths(self) -> dict[int, str]:
        """The names of stages' depths, by the stage's number."""
        names: dict[int, str] = {}
        for at, stage in enumerate(self.residuals.stages):
            modules = [self.modules.get(residual.out, "") for residual in stage.residuals]
            name = unique(choice_name(_common(modules), "depth", f"stage{at + 1}"), names.values())
            if not self._is_off(name) and self._depth_values(len(stage.residuals))[1:]:
                names[at] = name
        return names

    def _depth_values(self, residuals: int) -> tuple[int, ...]:
        return tuple(range(residuals * self.elasticity.least_depth // 100, residuals + 1))

    def _widths(self) -> tuple[list[Width], list[Rigid]]:
        widths: list[Width] = []
        rigid: list[Rigid] = []
        taken = set(self.depths.values())
        for axis, (line, tensor) in self._axes_of_weights().items():
            name = unique(choice_name(_module_of(tensor), "width", "network"), taken)
            values, reason = self._values(axis), self.found.axes.reason(axis)
            if reason is None and self._is_off(name):
                reason = OFF
            elif reason is None and axis in self.residuals.streams and not self.elasticity.stages:
                reason = FREE
            elif reason is None and len(values) < 2:
                reason = f"it is narrower than two steps of {self.elasticity.multiple} channels"
            if reason is not None:
                rigid.append(Rigid(name.removesuffix(".width"), self._channels(axis), reason, line))
                continue
            taken.add(name)
            units = self.found.axes.units(axis)
            widths.append(Width(name, axis, units, values, self._home(axis), line))
        return widths, rigid

    def _kernels(self) -> list[Kernel]:
        """The kernels that can be smaller, whose height and width become one axis."""
        found: list[Kernel] = []
        for line in self.spec.lines:
            weight = str(line.args[1])[1:] if line.op == "conv2d.default" else ""
            if weight not in self.found.tensors or not self._has_elastic_kernel(line, weight):
                continue
            name = unique(choice_name(_module_of(weight), "kernel", "network"), [kernel.choice for kernel in found])
            if not self._is_off(name):
                made, inside, height, _ = self.found.tensors[weight]
                size = self.found.axes.length(height)
                side = self.found.axes.new(size)
                self.found.tensors[weight] = (made, inside, side, side)
                home = self.residuals.homes.get(line.out)
                found.append(Kernel(name, side[0].axis, tuple(range(3, size + 1, 2)), home, weight, line.out))
        return found

    def _has_elastic_kernel(self, line: Line, weight: str) -> bool:
        """Whether a convolution is depthwise, with an odd square kernel of 5 or more that its padding keeps centred."""
        channels, inside, size, width = map(self.found.axes.length, self.found.tensors[weight])
        arranged = size == width and size % 2 == 1 and size >= 5 and inside == 1 and channels > 1
        if not arranged or len(line.args) < 7 or line.args[6] != channels or line.out in self.found.unknown:
            return False
        centred = line.args[4] == (size // 2, size // 2) and line.args[5] == (1, 1)
        return centred and sum(weight in other.reads for other in self.spec.lines) == 1

    def _axes_of_weights(self) -> dict[int, tuple[str, str]]:
        """The axes along which matrices make something, each with the first line that does, and its matrix."""
        found: dict[int, tuple[str, str]] = {}
        for line in self.spec.lines:
            for name in line.reads:
                dimensions = self.dimensions.get(name, ())
                if len(dimensions) > 1:
                    for segment in dimensions[0]:
                        if self.found.axes.units(segment.axis) > 1:
                            found.setdefault(segment.axis, (line.out, name))
        return found

    def _channels(self, axis: int) -> int:
        return self.found.axes.units(axis) * self._each(axis)

    def _each(self, axis: int) -> int:
        """The channels that one unit is where matrices make them: the fewest."""
        made = (dimensions[0] for dimensions in self.dimensions.values() if len(dimensions) > 1)
        counts = (sum(segment.each for segment in dimension if segment.axis == axis) for dimension in made)
        return min(count for count in counts if count)

    def _values(self, axis: int) -> tuple[int, ...]:
        """Numbers of units that suit devices, and all of them."""
        units = self.found.axes.units(axis)
        step = self.elasticity.multiple // math.gcd(self.elasticity.multiple, self._each(axis))
        some = (max(1, -(-units * percent // (100 * step))) * step for percent in self.elasticity.widths)
        return tuple(sorted({units, *(value for value in some if value < units)}))

    def _home(self, axis: int) -> Home | None:
        """The branch outside of which nothing has the axis."""
        users = [
            line for line in self.spec.lines if any(self._has(name, axis) for name in tensors_of(line, self.dimensions))
        ]
        homes = {self.residuals.homes.get(line.out) for line in users}
        while len(homes) > 1 and None not in homes:  # the innermost that holds all of them
            deepest = max(homes, key=self._nesting)
            homes = (homes - {deepest}) | {self._around(deepest)}
        return homes.pop() if len(homes) == 1 else None

    def _around(self, home: Home | None) -> Home | None:
        assert home is not None
        earlier = Home(home.stage, home.number - 1)
        return earlier if home.number else self.residuals.outer[home.stage]

    def _nesting(self, home: Home | None) -> int:
        return 0 if home is None else 1 + self._nesting(self._around(home))

    def _has(self, tensor: str, axis: int) -> bool:
        return any(segment.axis == axis for dimension in self.dimensions[tensor] for segment in dimension)

    def _is_off(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.elasticity.off)

    # The space

    def _choices(self) -> Iterable[Choice]:
        placed: list[tuple[int, int, Choice]] = []
        for at, name in self.depths.items():
            stage = self.residuals.stages[at]
            first = min(self.position[out] for out, home in self.residuals.homes.items() if self._inside(home, at))
            values = self._depth_values(len(stage.residuals))
            parent, allowed = self._under(self.residuals.outer[at], values)
            placed.append((first, 0, Choice(name=name, values=values, parent=parent, allowed=allowed)))
        for one in self.elastic_axes:
            parent, allowed = self._under(one.home, one.values)
            choice = Choice(name=one.choice, values=one.values, parent=parent, allowed=allowed)
            placed.append((self.position[one.line], 1, choice))
        return [choice for _, _, choice in sorted(placed, key=lambda entry: entry[:2])]

    def _inside(self, home: Home | None, stage: int) -> bool:
        """Whether a home is a branch of a stage, or lies in one."""
        while home is not None and home.stage != stage:
            home = self.residuals.outer[home.stage]
        return home is not None

    def _elastic(self, home: Home | None) -> Home | None:
        """The innermost branch around a home that can really be left out."""
        while home is not None and (
            home.stage not in self.depths
            or home.number < self._depth_values(len(self.residuals.stages[home.stage].residuals))[0]
        ):
            home = self.residuals.outer[home.stage]
        return home

    def _under(
        self, home: Home | None, values: tuple[int, ...]
    ) -> tuple[str | None, dict[int, tuple[int, ...]] | None]:
        home = self._elastic(home)
        if home is None:
            return None, None
        depths = self._depth_values(len(self.residuals.stages[home.stage].residuals))
        return self.depths[home.stage], {depth: values for depth in depths if depth > home.number}

    # An architecture

    def lengths(self, arch: Architecture) -> Callable[[Dimension], int]:
        """The length of dimensions in an architecture."""
        units = {one.axis: arch[one.choice] for one in self.elastic_axes if one.choice in arch}
        axes = self.found.axes

        def length(dimension: Dimension) -> int:
            return sum(units.get(s.axis, axes.units(s.axis)) * s.each for s in axes.resolve(dimension))

        return length

    def describe(self, arch: Architecture) -> GraphSpec:
        """The plain network of an architecture."""
        instead: dict[str, str] = {}
        for at, name in self.depths.items():
            if name in arch:
                instead |= self.residuals.stages[at].left_out(arch[name])
        length = self.lengths(arch)
        kept, output = without(self.spec.lines, self.spec.output, instead)
        originals = {line.out: line for line in self.spec.lines}
        lines = tuple(
            _with_args(line, originals[line.out], followed(self.found, originals[line.out], length)) for line in kept
        )
        used = {name for line in kept for name in tensors_of(line, self.dimensions)}
        tensors = (
            TensorSpec(t.name, tuple(map(length, self.dimensions[t.name])), t.learned, t.whole)
            for t in self.spec.tensors
            if t.name in used
        )
        return GraphSpec(
            resolution=self.spec.resolution,
            in_channels=self.spec.in_channels,
            num_classes=self.spec.num_classes,
            tensors=tuple(tensors),
            lines=lines,
            output=output,
        )

    # Costs

    @cached_property
    def cost(self) -> CostModel:
        """MACs and parameters as a sum of terms, each of which follows from the widths of a few axes and one depth."""
        sums: dict[tuple[Home | None, tuple[int, ...]], Cost] = {}
        choices = {one.axis: one.choice for one in self.elastic_axes}
        learned = {tensor.name for tensor in self.spec.tensors if tensor.learned}
        for line in self.spec.lines:
            home = self._elastic(self.residuals.homes.get(line.out))
            macs = _macs_of(self.found, line)
            parts = [(factors, Cost(size, 0)) for factors, size in self._expanded(*macs, choices)] if macs else []
            for name in [name for name in tensors_of(line, self.dimensions) if name in learned]:
                learned.discard(name)  # counted
                parts += [
                    (factors, Cost(0, size)) for factors, size in self._expanded(1, self.dimensions[name], choices)
                ]
            for factors, cost in parts:
                sums[home, factors] = sums.get((home, factors), Cost(0, 0)) + cost
        return CostModel(
            self.space, tuple(self._term(home, factors, c, choices) for (home, factors), c in sums.items())
        )

    def _expanded(
        self, constant: int, dimensions: Sequence[Dimension], elastic: Collection[int]
    ) -> Iterable[tuple[tuple[int, ...], int]]:
        """A product of lengths as a sum: for each product of elastic axes its factor."""
        rows = []
        for dimension in dimensions:
            row: dict[int | None, int] = {}
            for axis, each in self.found.axes.resolve(dimension):
                key, size = (axis, each) if axis in elastic else (None, each * self.found.axes.units(axis))
                row[key] = row.get(key, 0) + size
            rows.append(row)
        for picked in product(*(row.items() for row in rows)):
            factors = tuple(sorted(axis for axis, _ in picked if axis is not None))
            yield factors, constant * math.prod(size for _, size in picked)

    def _term(self, home: Home | None, factors: tuple[int, ...], each: Cost, choices: Mapping[int, str]) -> CostTerm:
        """`each` times the units of axes, where a branch exists. An axis may stand twice."""
        axes = tuple(dict.fromkeys(factors))
        depth = () if home is None else (self.depths[home.stage],)

        def cost(*values: int | None) -> Cost:
            above, units = values[: len(depth)], dict(zip(axes, values[len(depth) :], strict=True))
            if home is not None and (above[0] is None or above[0] <= home.number):
                return Cost(0, 0)
            present = [units[axis] for axis in factors]
            assert all(count is not None for count in present)
            times = math.prod(count for count in present if count is not None)
            return Cost(each.macs * times, each.params * times)

        return CostTerm((*depth, *(choices[axis] for axis in axes)), lru_cache(maxsize=None)(cost))


def tensors_of(line: Line, known: Iterable[str]) -> tuple[str, ...]:
    """The network's own tensors that a line reads."""
    names = tuple(name for name in line.reads if name in known)
    if line.op == NORM:
        names += tuple(name for part in NORM_PARTS if (name := f"{line.args[1]}.{part}") in known)
    return names


NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _macs_of(found: Analysis, line: Line) -> tuple[int, Sequence[Dimension]] | None:
    """Multiply-accumulates for one image as a product: a number, and the lengths of dimensions."""
    if line.op in ("conv2d.default", "conv2d.padding", "conv1d.default"):
        made, weight = found.of(f"%{line.out}"), found.of(line.args[1])
        return 1, (*made[2:], *weight)
    if line.op.startswith("conv_transpose"):  # each value of its input meets the whole kernel
        return 1, (*found.of(line.args[0])[2:], *found.of(line.args[1]))
    if line.op == "linear.default":
        made, weight = found.of(f"%{line.out}"), found.of(line.args[1])
        return _of_one_image(found, (*made[:-1], *weight))
    if line.op in ("matmul.default", "bmm.default"):
        return _of_one_image(found, (*found.of(f"%{line.out}"), found.of(line.args[0])[-1]))
    if line.op == "scaled_dot_product_attention.default":
        query, key, value = (found.of(argument) for argument in line.args[:3])
        return _of_one_image(found, (*query[:-1], key[-2], query[-1] + value[-1]))
    return None


def _of_one_image(found: Analysis, dimensions: Sequence[Dimension]) -> tuple[int, Sequence[Dimension]]:
    """The dimensions without the images of the batch, which may be one with others in a fixed dimension."""
    left = list(dimensions)
    for at, dimension in enumerate(left):
        length = found.axes.length(dimension)
        if length % BATCH == 0 and found.axes.is_rigid(dimension):
            del left[at]
            return length // BATCH, left
    return 1, left


def _with_args(kept: Line, original: Line, now: Line) -> Line:
    """A line with the numbers of one and the names of another."""
    if now is original:
        return kept
    args = tuple(k if k != o else n for k, o, n in zip(kept.args, original.args, now.args, strict=False))
    return Line(kept.out, kept.op, (*args, *now.args[len(args) :]), now.kwargs)


def _module_of(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _common(modules: Sequence[str]) -> str:
    """What the dotted names of modules begin with."""
    paths = [module.split(".") for module in modules]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def choice_name(module: str, kind: str, otherwise: str) -> str:
    """A dotted name of a choice: the module's, its numbers joined to what stands before them."""
    name = re.sub(r"\.(?=\d)", "_", module.lower())
    name = re.sub(r"(^|\.)_+", r"\1", re.sub(r"[^a-z0-9_.]", "_", name)) or otherwise
    return f"{name if name[0].isalpha() else f'{otherwise}_{name}'}.{kind}"


def unique(name: str, taken: Iterable[str]) -> str:
    """The name, with a number where it is taken."""
    taken, (head, _, kind) = set(taken), name.rpartition(".")
    number = 2
    while name in taken:
        name, number = f"{head}_{number}.{kind}", number + 1
    return name


def refuse_rigid(layout: TracedLayout) -> None:
    """Raise `UserError` where nothing of a network is elastic."""
    if layout.space.choices:
        return
    reasons = sorted({f"{rigid.name}: {rigid.reason}" for rigid in layout.rigid})
    raise UserError(f"nothing of this network is elastic: {'; '.join(reasons) or 'it has no hidden channels'}")


__all__ = ["IMAGES", "Elasticity", "Kernel", "Rigid", "TracedLayout", "Width", "refuse_rigid"]
