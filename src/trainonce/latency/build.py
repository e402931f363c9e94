"""Measuring a machine: the parts of a space alone, then whole random subnets; the table that follows.

Most networks are measured to find what parts take within a network; the rest, evenly among them, say how well the
table predicts what it is not made from. Those are measured a second time at the end, which says how well measuring
repeats. Networks are held in memory a few at a time. A few of them, the anchors, are in every group: what they are
slower in a group than usual, the machine was slower, and that is taken out.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import Field
from torch import nn

from trainonce.errors import UserError
from trainonce.latency.accuracy import PredictionError
from trainonce.latency.bench import (
    Bench,
    BenchWork,
    Call,
    Line,
    OnProgress,
    Timer,
    pinned,
    this_machine,
    time_ms,
    without_drift,
)
from trainonce.latency.fit import Floats, amount_times, counted, part_times
from trainonce.latency.log import Log, MeasuredLine
from trainonce.latency.parts import (
    amounts_of,
    is_ends,
    is_timed_alone,
    kinds_of,
    part_modules,
    representatives,
    sized_network,
)
from trainonce.latency.runtimes import Prepare, Shape, make_runtime, torch_threads, versions_of
from trainonce.latency.table import MOST_BATCH, MOST_THREADS, LatencyTable, PartTime
from trainonce.latency.weights import Kind
from trainonce.models import Supernet
from trainonce.nn.kinds import PlainSpec
from trainonce.nn.plain_graph import GraphSpec
from trainonce.settings import JsonObject, Settings
from trainonce.space import Architecture, derived_rng

T = TypeVar("T")

ANCHORS = 3
GROUP = 12
"""How many networks are held in memory at once beside the anchors."""
FEWEST = 15
"""How few networks there may be to fit and to hold out, together."""
PARTS_AT_ONCE = 128
"""How many parts are held in memory, and take turns, at once."""


class BuildSettings(Settings):
    """How a machine is measured."""

    runtime: str = "onnxruntime"
    """What runs the networks, of `RUNTIMES`."""
    threads: int = Field(1, ge=1, le=MOST_THREADS)
    """Threads of the runtime."""
    batch: int = Field(1, ge=1, le=MOST_BATCH)
    """Images in a call."""
    networks: int = Field(240, ge=10)
    """Random subnets that the parts' times are found from."""
    held_out: int = Field(60, ge=5)
    """Random subnets that are only predicted."""
    rounds: int = Field(20, ge=1)
    """Turns of each network and each part; the median counts."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the random subnets."""

    @classmethod
    def quick(cls, **fields: Any) -> Self:
        """A fifth of the networks to fit and half of the turns, for a first look."""
        return cls(**{"networks": 48, "held_out": 24, "rounds": 10, **fields})


@dataclass(frozen=True)
class Plan:
    """What is to be measured, all of which follows from the space and the settings."""

    parts: dict[str, PlainSpec]
    anchors: tuple[PlainSpec, ...]
    networks: tuple[PlainSpec, ...]
    held_out: tuple[bool, ...]
    """Which of the networks are only predicted."""

    @property
    def again(self) -> tuple[PlainSpec, ...]:
        """Those that are only predicted, once more: measured twice, they say how well measuring repeats."""
        return tuple(spec for spec, held in zip(self.networks, self.held_out, strict=True) if held)

    @property
    def identity(self) -> str:
        """A hash of all that is measured, in its order."""
        return hashlib.sha256(repr((list(self.parts), self.anchors, self.networks)).encode()).hexdigest()


def make_plan(net: Supernet, settings: BuildSettings) -> Plan:
    """The parts of the space, the anchors, and the networks, those held out evenly among those to fit.

    At most half of the space is measured. Raises `UserError` where it has too few subnets.
    """
    archs = _planned(net, settings)
    count = len(archs) - ANCHORS
    if count < FEWEST:
        raise UserError(f"the space has {net.space.count()} subnets, too few for a table: measure those themselves")
    specs = [net.describe(arch) for arch in archs]
    due = [i * settings.held_out // (settings.networks + settings.held_out) for i in range(count + 1)]
    held_out = tuple(after > before for before, after in pairwise(due))
    return Plan(representatives(net), tuple(specs[:ANCHORS]), tuple(specs[ANCHORS:]), held_out)


def _planned(net: Supernet, settings: BuildSettings) -> list[Architecture]:
    """The subnets that a table is made from, the anchors first; at most half of the space."""
    count = min(ANCHORS + settings.networks + settings.held_out, net.space.count() // 2)
    return _random_subnets(net, count, "latency", settings.seed)


def _random_subnets(
    net: Supernet, count: int, *key: int | str, beside: Collection[Architecture] = ()
) -> list[Architecture]:
    """Distinct subnets, uniform over the values of choices, none of those `beside`; no more than the space has."""
    others = frozenset(beside)
    count = min(count, net.space.count() - len(others))
    rng, drawn = derived_rng(*key), dict[Architecture, None]()
    while len(drawn) < count:
        arch = net.space.sample(rng)
        if arch not in others:
            drawn[arch] = None
    return list(drawn)


def _in_groups(items: Sequence[T], size: int) -> list[tuple[T, ...]]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


Item = tuple[str, PlainSpec] | PlainSpec
"""A part, with a network that has it, or a whole network."""


def work_of(plan: Plan) -> BenchWork:
    """What a plan has to be measured, in its order."""
    alone = [(name, spec) for name, spec in plan.parts.items() if is_timed_alone(name)]
    return BenchWork(
        parts=_in_groups(alone, PARTS_AT_ONCE),
        anchors=plan.anchors,
        groups=_in_groups([*plan.networks, *plan.again], GROUP),
    )


def modules_of(item: Item, batch: int) -> list[tuple[nn.Module, Shape]]:
    """The modules, without weights, that something to be measured consists of, each with the shape of its input."""
    if isinstance(item, tuple):
        return [(module, (batch, *module.shape)) for module in part_modules(*item)]
    return [(sized_network(item), (batch, item.in_channels, item.resolution, item.resolution))]


def _bench(prepare: Prepare, settings: BuildSettings, timer: Timer) -> Bench:
    def calls(item: Item) -> list[Call]:
        return [prepare(module, shape) for module, shape in modules_of(item, settings.batch)]

    return Bench(calls, settings.rounds, timer)


def build_table(
    net: Supernet,
    settings: BuildSettings,
    *,
    partial_file: str | Path | None = None,
    out: str | Path | None = None,
    on_progress: OnProgress = lambda done, total, text: None,
    prepare: Prepare | None = None,
    timer: Timer = time_ms,
) -> LatencyTable:
    """Measure this machine for the subnets of a supernet. Its weights do not matter.

    With `partial_file` what is measured is kept there until the table is made, and written to `out` where that is
    given; an interrupted measurement with the same settings on the same machine goes on. `prepare` and `timer` replace
    the runtime and the clock.
    Raises `UserError` for an unknown runtime, a missing extra, a space of too few subnets, and where another process
    measures into that file.
    """
    plan = make_plan(net, settings)
    machine, versions = this_machine(), versions_of(settings.runtime)
    identity: JsonObject = {
        "plan": plan.identity,
        "settings": settings.model_dump(),
        "machine": dict(machine),
        "versions": dict(versions),
    }
    with Log.held(Path(partial_file) if partial_file else None, identity) as log:
        with pinned(settings.threads), torch_threads(settings.threads):
            bench = _bench(prepare or make_runtime(settings.runtime, threads=settings.threads), settings, timer)
            work = work_of(plan)
            log.check(work.counts())
            bench.measure(work, len(log.lines), lambda line: log.add(MeasuredLine.read(line, where="now")), on_progress)
        table = table_of(plan, log.lines, settings, machine, versions)
        if out is not None:
            table.write(out)
        log.remove()
    return table


def table_of(
    plan: Plan,
    lines: Sequence[MeasuredLine],
    settings: BuildSettings,
    machine: Mapping[str, str | int | None],
    versions: Mapping[str, str],
    made: str | None = None,
) -> LatencyTable:
    """The table that follows from the measurements of a plan, all of which are there; `made` when, now by default."""
    alone = [ms for line in lines for ms in line.parts]
    order = list(plan.parts)
    counts = counted([amounts_of(spec) for spec in plan.networks], order)
    measured, drift = without_drift([line.to_json() for line in lines if line.ms])
    once, again = np.split(measured, [len(plan.networks)])
    held_out = np.array(plan.held_out)
    if alone:
        ends = np.array([is_ends(name) for name in order])
        times = part_times(counts[~held_out], once[~held_out], np.array(alone), ends)
    else:
        times = amount_times(counts[~held_out], once[~held_out], _kinds(plan))
    return LatencyTable(
        runtime=settings.runtime,
        threads=settings.threads,
        batch=settings.batch,
        resolutions=tuple(sorted({spec.resolution for spec in plan.parts.values()})),
        made=made or datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings.model_dump(),
        drift=drift,
        error=PredictionError.of((counts[held_out] @ times).tolist(), ((once[held_out] + again) / 2).tolist()),
        repeat=PredictionError.of(once[held_out].tolist(), again.tolist()),
        parts=tuple(_part_times(plan, times, alone)),
        machine=dict(machine),
        versions=dict(versions),
    )


def _part_times(plan: Plan, times: Floats, alone: Sequence[float]) -> Iterator[PartTime]:
    """Those of a plan; `times` are of one of each part, and the table's of all that the largest network has."""
    for place, ((name, spec), ms) in enumerate(zip(plan.parts.items(), times, strict=True)):
        most = None if alone else amounts_of(spec)[name]
        yield PartTime(
            part=json.loads(name),
            ms=float(ms * (most or 1)),
            alone_ms=alone[place] if alone else None,
            most=most,
        )


def _kinds(plan: Plan) -> Floats:
    """What one of each part is in each kind of work: [parts, kinds]."""
    found: dict[str, dict[Kind, float]] = {}
    for spec in set(plan.parts.values()):
        assert isinstance(spec, GraphSpec)
        found |= kinds_of(spec)
    places = {kind: place for place, kind in enumerate(sorted({kind for kinds in found.values() for kind in kinds}))}
    kinds = np.zeros((len(plan.parts), len(places)))
    for row, name in zip(kinds, plan.parts, strict=True):
        for kind, unit in found[name].items():
            row[places[kind]] = unit
    return kinds


@dataclass(frozen=True, kw_only=True)
class TableCheck:
    """What a table's predictions are worth on a machine now."""

    error: PredictionError
    """How they compare with what random subnets take there; its `factor` is the machine's pace beside the table's."""
    drift: tuple[float, float]
    """The machine's slowest and fastest pace during the check, as factors of its usual one; this was taken out."""


def check_table(
    table: LatencyTable,
    net: Supernet,
    *,
    networks: int = 40,
    rounds: int = 20,
    seed: int = 1,
    on_progress: OnProgress = lambda done, total, text: None,
    prepare: Prepare | None = None,
    timer: Timer = time_ms,
) -> TableCheck:
    """Measure random subnets here and now, as the table's were, and compare them with its predictions.

    They are others than the table was made from, which is at most half of the space; where there are fewer, all others.
    What the machine's pace changes meanwhile is taken out by the table's anchors, as it is from a table; that another
    machine, or this one now, is slower as a whole is not: the error's `factor` says so.
    Raises `UserError` where the table is of another space.
    """
    made_from = _planned(net, BuildSettings.parse(table.settings, where="the table's settings"))
    specs = [net.describe(arch) for arch in _random_subnets(net, networks, "latency check", seed, beside=made_from)]
    predicted = [table.predict_ms(spec) for spec in specs]
    settings = BuildSettings(runtime=table.runtime, threads=table.threads, batch=table.batch, rounds=rounds)
    groups: list[Line] = []
    with pinned(settings.threads), torch_threads(settings.threads):
        bench = _bench(prepare or make_runtime(settings.runtime, threads=settings.threads), settings, timer)
        anchors = [bench.prepare(net.describe(arch)) for arch in made_from[:ANCHORS]]
        for group in _in_groups(specs, GROUP):
            on_progress(GROUP * len(groups), len(specs), "whole networks")
            groups.append(bench.networks(len(groups), group, anchors))
    on_progress(len(specs), len(specs), "done")
    measured, drift = without_drift(groups)
    return TableCheck(error=PredictionError.of(predicted, measured.tolist()), drift=drift)


def table_seconds(net: Supernet, settings: BuildSettings) -> float:
    """About how long a table takes: one anchor is prepared and timed."""
    plan = make_plan(net, settings)
    with pinned(settings.threads), torch_threads(settings.threads):
        bench = _bench(make_runtime(settings.runtime, threads=settings.threads), settings, time_ms)
        return bench.seconds(work_of(plan))
