"""One subnet taken out of a run, into a directory that loads with torch and safetensors alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trainonce.cost.macs import Cost, counted_cost
from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score, finite, refuse_empty
from trainonce.evaluation.per_class import PerClass, score_by_class
from trainonce.evaluation.population import best_within, newest_lines
from trainonce.models import Supernet
from trainonce.nn.fusing import fused
from trainonce.nn.kinds import spec_of, written
from trainonce.nn.plain_graph import GraphNetwork
from trainonce.pipeline.machine import device_named, use_threads
from trainonce.pipeline.searching import Amount, budget, calibration_of, limits_of
from trainonce.recipes import Reached
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import SubnetScore
from trainonce.search.resources import table_at
from trainonce.settings import JsonObject
from trainonce.space import Architecture
from trainonce.subnets import check_place, read_subnet, verify_subnet, write_subnet
from trainonce.subnets.description import RecordedScore, SubnetDescription
from trainonce.subnets.taken import describe_taken


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """A subnet that was taken out."""

    run: RunDirectory
    path: Path
    """Its directory."""
    arch: Architecture
    cost: Cost
    scores: dict[str, Score]
    """By split: validate, and test where that was asked for."""
    per_class: PerClass
    """On the last of these splits, class by class."""
    class_names: tuple[str, ...]
    description: SubnetDescription
    """What its config.json holds: of the test split also what was recorded before, where it is the same network."""


def extract(
    run: str | Path,
    arch: str | None = None,
    *,
    max_macs: Amount | None = None,
    max_params: Amount | None = None,
    max_latency: Amount | None = None,
    max_memory: Amount | None = None,
    max_size: Amount | None = None,
    target: str | None = None,
    latency: str | None = None,
    recalibrate: bool = True,
    fuse: bool = False,
    test: bool = False,
    out: str | Path | None = None,
    license: str | None = None,
    data: DataSet | str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    decode_workers: int | None = None,
    on_data: Callable[[DataSet], None] = lambda _: None,
    on_reached: Callable[[Reached], None] = lambda _: None,
) -> Extracted:
    """Take one subnet out of a run: `trainonce extract`, whose options these are.

    `arch` is an architecture, `largest` or `smallest`; without it the best under the budget of all that are scored is
    taken; `max_memory`, `max_size` and `target` are `search`'s. It is written to `out`, or to RUN/subnets/ID. With
    `fuse`, parallel convolutions of a network of one's own are merged into one (`trainonce.nn.fusing`), which changes
    nothing but rounding. `seed` is the calibration's: by default as the subnet was scored, 0 where it was not.
    `on_data` is called with the images before the work, and `on_reached` with how far the training had come. Raises
    `UserError` for what cannot be, before anything is written, and `RunError` where its scores are not finite.
    """
    use_threads(threads)
    place = RunDirectory(run)
    net, step = place.load_supernet()
    settled = device_named(device)
    images = place.load_data(data_dir, moved_to=data, workers=decode_workers).to(settled)
    refuse_empty(images, "test" if test else "validate")
    on_data(images)
    on_reached(place.reached(step, len(images.train)))
    net = net.to(settled)
    most = budget(max_macs, max_params, max_latency, max_memory, max_size)
    if arch is not None and (most or latency or target):
        option = f"max-{next(iter(most))}" if most else "latency" if latency else "target"
        raise UserError(f"--{option} cannot be given together with an architecture")
    scored = [line for line in place.scores() if (line.step, line.split) == (step, "validate")]
    line: SubnetScore | None
    if arch is None:
        line = _best(place, net, scored, most, latency, target)
        chosen = net.space.parse(line.arch)
    else:
        chosen = net.space.parse(arch)
        line = next((line for line in reversed(scored) if line.arch == str(chosen)), None)
    as_scored = EvaluateSettings() if line is None else calibration_of(place, line)
    settings = as_scored if seed is None else EvaluateSettings(seed=seed)
    path = Path(out or place.subnets / chosen.id)
    check_place(path)
    evaluator = Evaluator(images, "validate", settings)
    network = evaluator.recalibrated(net, chosen) if recalibrate else net.extract(chosen)
    network = _fused(network, chosen) if fuse else network
    scores = {"validate": finite(evaluator.score(network), "validate")} if test else {}
    last = "test" if test else "validate"
    scores[last], classes = score_by_class(network, images.test if test else images.validate, images, last)
    calibration = evaluator.settings if recalibrate else None
    description = describe_taken(net, chosen, images, place, step, calibration=calibration, scores=scores)
    description |= {"per_class": classes.recorded(last)}
    if fuse:
        cost = counted_cost(spec_of(network))
        description |= {"network": written(spec_of(network)), "macs": cost.macs, "params": cost.params, "fused": True}
    if license:
        description |= {"license": license}
    tested_before = None if test else _tested_before(path, network, description)
    if tested_before is not None:
        score, of_classes = tested_before
        recorded = description.to_json()["scores"] | {"test": score.to_json()}
        description |= {"scores": recorded, "per_class": of_classes}
    write_subnet(path, network, description)
    verify_subnet(path, network)
    return Extracted(
        run=place,
        path=path,
        arch=chosen,
        cost=Cost(description.macs, description.params),
        scores=scores,
        per_class=classes,
        class_names=tuple(images.class_names),
        description=description,
    )


def _tested_before(
    path: Path, network: nn.Module, described: SubnetDescription
) -> tuple[RecordedScore, JsonObject | None] | None:
    """What is recorded at a path of the test split, and class by class, where it is of this network and these images.

    None where it is not, or nothing is.
    """
    try:
        there, before = read_subnet(path)
    except UserError:  # there is none, or a damaged one
        return None
    old, new = there.state_dict(), network.state_dict()
    same = old.keys() == new.keys() and all(torch.equal(old[name], new[name].cpu()) for name in old)
    same = same and (before.network, before.classes) == (described.network, described.classes)
    same = same and _fingerprint(before) == _fingerprint(described)
    found = (before.scores or {}).get("test")
    return (found, before.per_class) if same and found is not None else None


def _fingerprint(description: SubnetDescription) -> str | None:
    return description.trained.data_fingerprint if description.trained else None


def _fused(network: nn.Module, arch: Architecture) -> nn.Module:
    """The network with its parallel convolutions merged, where it was. Raises `UserError` where it has none."""
    merged = fused(network) if isinstance(network, GraphNetwork) else network
    if merged is network:
        raise UserError(f"{arch} has no parallel convolutions to merge: leave out --fuse")
    return merged.to(next(network.parameters()).device)


def _best(
    run: RunDirectory,
    net: Supernet,
    scored: Sequence[SubnetScore],
    most: Mapping[str, Amount],
    latency: str | None,
    target: str | None,
) -> SubnetScore:
    """The line of the best subnet within a budget, of those that were scored alike last."""
    limits = limits_of(net, most, table_at(run, latency, needed="latency" in most), target=target)
    lines = newest_lines(scored, "validate")
    return best_within(lines, lambda line: all(limit.violation(net.space.parse(line.arch)) <= 0 for limit in limits))
