"""Branches of a network that can be left out: every `x + f(x)` of equal shapes whose f computes something."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

from trainonce.models.traced.analysis import Analysis
from trainonce.nn.plain_graph import IMAGES, NORM, Argument, Line

COMPUTING = ("conv2d.default", "conv2d.padding", "conv1d.default", "linear.default", "matmul.default", "bmm.default")
"""What a branch holds one of: without, leaving it out saves nothing."""


@dataclass(frozen=True)
class ResidualSum:
    """A sum `out` of what goes around a branch and what comes out of it."""

    out: str
    around: str


@dataclass(frozen=True)
class Stage:
    """Residuals one behind the other on one stream. The last are left out first."""

    residuals: tuple[ResidualSum, ...]

    def left_out(self, depth: int) -> dict[str, str]:
        """What stands for the sums of the residuals behind the first `depth`."""
        return {residual.out: residual.around for residual in self.residuals[depth:]}


@dataclass(frozen=True)
class Home:
    """The branch that something belongs to: it exists where the stage's depth is more than `number`."""

    stage: int
    number: int


@dataclass(frozen=True)
class Residuals:
    """The stages of a network, and where each line belongs."""

    stages: tuple[Stage, ...]
    homes: Mapping[str, Home]
    """The innermost branch of each line that lies in one, by what the line makes."""
    outer: tuple[Home | None, ...]
    """The branch that each stage itself lies in."""
    streams: frozenset[int]
    """The axes of streams: of all sums of what is computed and what goes around it or is computed beside it."""
    kept: Mapping[str, str]
    """Why the branches of a stage that was passed over stay, by its last sum."""


def find_residuals(found: Analysis) -> Residuals:
    """The branches that can be left out. A stage is passed over where others need what is in its branches."""
    behind = _ancestors(found.spec.lines)
    computing = sum(1 << at for at, line in enumerate(found.spec.lines) if line.op in COMPUTING)
    streams: set[int] = set()
    by_stream: dict[object, list[ResidualSum]] = {}
    for line in found.spec.lines:
        around = _around(found, line, behind, computing)
        if around is not None:
            dimensions = found.of(f"%{line.out}")
            streams |= {segment.axis for dimension in dimensions for segment in dimension}
            if around:
                by_stream.setdefault((dimensions[1:], found.shape(line)), []).append(ResidualSum(line.out, around))
    stages: list[Stage] = []
    homes: dict[str, Home] = {}
    outer: list[Home | None] = []
    passed: dict[str, str] = {}
    for residuals in by_stream.values():
        tried = [*stages, Stage(tuple(residuals))]
        belonging = _homes(found, tried)
        if isinstance(belonging, str):
            passed[residuals[-1].out] = belonging
        else:
            stages, (homes, outer) = tried, belonging
    return Residuals(tuple(stages), homes, tuple(outer), frozenset(streams), passed)


def without(lines: Sequence[Line], output: str, instead: Mapping[str, str]) -> tuple[list[Line], str]:
    """The lines that are left, and the output, where values stand for others."""

    def final(name: str) -> str:
        while name in instead:
            name = instead[name]
        return name

    def renamed(argument: Argument) -> Argument:
        if isinstance(argument, tuple):
            return tuple(map(renamed, argument))
        return f"%{final(argument[1:])}" if isinstance(argument, str) and argument.startswith("%") else argument

    wanted, kept = {final(output)}, []
    for line in reversed(lines):
        if line.out in wanted:
            changed = any(name in instead for name in line.reads)
            kept.append(replace(line, args=tuple(map(renamed, line.args))) if changed else line)
            wanted |= set(kept[-1].reads)
    return kept[::-1], final(output)


def _ancestors(lines: Sequence[Line]) -> dict[str, int]:
    """Of each value, the lines that it is made of, its own among them: a bit for each."""
    behind: dict[str, int] = {}
    for at, line in enumerate(lines):
        behind[line.out] = reduce(or_, (behind[name] for name in line.reads if name in behind), 1 << at)
    return behind


def _around(found: Analysis, line: Line, behind: Mapping[str, int], computing: int) -> str | None:
    """Of a sum of values of one shape: what goes around a branch, or nothing where both are computed ("").

    None for any other line, and where neither computes something of its own.
    """
    if line.op != "add.Tensor" or line.kwargs or len(line.reads) != 2:
        return None
    one, other = line.reads
    if one not in behind or other not in behind or found.shapes[one] != found.shapes[other]:
        return None
    if not (behind[one] ^ behind[other]) & computing:
        return None
    common = behind[one] & behind[other]
    return one if common == behind[one] else other if common == behind[other] else ""


def _homes(found: Analysis, stages: Sequence[Stage]) -> tuple[dict[str, Home], list[Home | None]] | str:
    """Where each line and each stage belongs; what belongs to more than one branch, in words, where something does."""
    spec = found.spec
    names = {line.out for line in spec.lines}
    gone: list[tuple[Home, set[str]]] = []
    for at, stage in enumerate(stages):
        for number in range(len(stage.residuals)):
            kept, _ = without(spec.lines, spec.output, stage.left_out(number))
            gone.append((Home(at, number), names - {line.out for line in kept}))
    gone.sort(key=lambda entry: len(entry[1]))
    homes: dict[str, Home] = {}
    for home, lines in gone:
        for name in lines:
            homes.setdefault(name, home)
    everything = {out: around for stage in stages for out, around in stage.left_out(0).items()}
    kept, _ = without(spec.lines, spec.output, everything)
    if names - {line.out for line in kept} != set(homes):
        return "its branches compute something together"
    for name, readers in _readers(spec.lines).items():
        first, *others = [homes.get(line.out) for line in readers]
        if any(other != first and not _goes_with(other, first) for other in others):
            return f"{name} is needed in one of its branches and elsewhere"
    sums = [{stage.residuals[number].out for number in range(len(stage.residuals))} for stage in stages]
    outer = [_outer(at, outs, gone) for at, outs in enumerate(sums)]
    return homes, outer


def _goes_with(home: Home | None, first: Home | None) -> bool:
    """Whether a branch is left out before another one of its stage, so that what both need exists as long as that."""
    return home is not None and first is not None and home.stage == first.stage and home.number > first.number


def _readers(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """For each tensor of the network, the lines that read it."""
    lines = list(lines)
    made = {IMAGES, *(line.out for line in lines)}
    readers: dict[str, list[Line]] = {}
    for line in lines:
        for name in set(line.reads) - made:
            readers.setdefault(name, []).append(line)
        if line.op == NORM:
            readers.setdefault(str(line.args[1]), []).append(line)
    return readers


def _outer(at: int, outs: set[str], gone: Sequence[tuple[Home, set[str]]]) -> Home | None:
    """The innermost branch of another stage in which all sums of a stage lie."""
    for home, lines in gone:
        if home.stage != at and outs <= lines:
            return home
    return None
