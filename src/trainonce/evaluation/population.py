"""The population: many subnets drawn by MACs, scored, and summed up.

Each score is one line of `population.jsonl`. A line counts for the weights, split and calibration it was made
with, so evaluating again does only what is missing.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR
from itertools import pairwise, zip_longest
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from trainonce.cost.macs import CostModel
from trainonce.errors import NotFiniteError, UserError
from trainonce.evaluation.evaluator import Evaluator, Score, SplitName
from trainonce.evaluation.pareto import nondominated
from trainonce.evaluation.scoring import Chunk, Scoring, chunks_of
from trainonce.files import fits_record
from trainonce.models import Supernet
from trainonce.names import plain
from trainonce.parallel.fan_out import LOCAL, fan_out
from trainonce.recipes import Recipe
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import SubnetScore
from trainonce.sampling import MacsSampler, even_subnets
from trainonce.settings import JsonObject
from trainonce.space import Architecture, Over, derived_rng

DrawnOver = Over | Literal["even"]
"""What a population is drawn over: see `draw_population`."""

PAPER_BUCKETS_M = (4.0, 6.0, 8.0, 10.0, 12.0, 14.0)
"""Centres of the paper's buckets in million MACs; each reaches 0.5 to either side."""

SPREAD = 6
"""How many buckets are spread over a space's range where no centres are named."""

DRAWS_PER_SUBNET = 200
"""How often a bucket is drawn from before it is taken to hold no further subnet."""

NEAR = 0.85
"""Candidates have at least this share of the limit's MACs, or of those of the largest subnet of their size of images,
where there are such subnets."""

MOST_PER_BUCKET = 100_000
"""The most subnets that a bucket may be asked for."""

MANY_WORKERS = 64
"""How many workers the work is divided for where a cluster's size is not known."""


@dataclass(frozen=True)
class Bucket:
    """The subnets with MACs within `half` of `centre`."""

    centre: float
    half: float

    def __str__(self) -> str:
        return f"{self.centre / 1e6:.2f}±{self.half / 1e6:.2f} M"

    def __contains__(self, macs: float) -> bool:
        return self.centre - self.half <= macs <= self.centre + self.half


def make_buckets(cost: CostModel, centres_m: Sequence[float] = (), half_m: float | None = None) -> list[Bucket]:
    """Buckets at centres in million MACs; without any, six spread evenly over the space's range, but for those in which
    a small space has no subnet; one where all subnets have the same MACs.

    `half_m` is how far each reaches to either side, in million MACs; by default 0.5, or a twentieth of the range
    where the centres are spread. Raises `UserError` for a number that is not positive and for buckets that overlap;
    they may touch.
    """
    if not all(0 < number < float("inf") for number in (*centres_m, *([] if half_m is None else [half_m]))):
        raise UserError("bucket centres and widths must be positive numbers of million MACs")
    named_half = (0.5 if half_m is None else half_m) * 1e6
    if centres_m:
        if _overlap([centre * 1e6 for centre in centres_m], named_half):
            raise UserError(
                f"buckets that reach {plain(named_half / 1e6)} M MACs to either side of their centres overlap"
            )
        return [Bucket(centre * 1e6, named_half) for centre in centres_m]
    sampler = MacsSampler(cost)
    low, high = sampler.min_macs, sampler.max_macs
    if low == high:
        return [Bucket(low, named_half)]
    half = (high - low) / 20 if half_m is None else named_half
    centres = np.linspace(low + half, high - half, SPREAD).tolist()
    if _overlap(centres, half):
        most = plain((high - low) / (2 * SPREAD) / 1e6, 3, ROUND_FLOOR)
        raise UserError(
            f"{SPREAD} buckets spread from {plain(low / 1e6)} to {plain(high / 1e6)} M MACs overlap where they reach "
            f"{plain(half / 1e6)} M to either side of their centres: take at most {most}, or name fewer with --buckets"
        )
    return [Bucket(centre, half) for centre in centres if sampler.holds(centre - half, centre + half)]


def _overlap(centres: Sequence[float], half: float) -> bool:
    """Whether buckets do more than touch, by more than rounding: 0.1 and 0.3 are not 0.2 apart."""
    return any(after - before < 2 * half * (1 - 1e-9) for before, after in pairwise(sorted(centres)))


def draw_population(
    cost: CostModel, buckets: Sequence[Bucket], per_bucket: int, *, seed: int, over: DrawnOver = "choices"
) -> list[tuple[Bucket, Architecture]]:
    """Distinct subnets of each bucket, drawn from `seed`; fewer where a bucket holds fewer.

    Drawn without bias over "choices" or "subnets"; with "even" they are even ones, and others over choices only where
    few of a bucket are. The first n of a larger draw are the draw of n. What two buckets that touch both draw is the
    first one's alone. Raises `UserError` for a bucket without any subnet.
    """
    sampler, found = _sampler(cost, over), dict[Architecture, Bucket]()
    for bucket in buckets:
        for arch in _drawn(sampler, bucket, per_bucket, seed, over):
            found.setdefault(arch, bucket)
    return [(bucket, arch) for arch, bucket in found.items()]


def draw_candidates(
    cost: CostModel, limits: Sequence[float], count: int, *, seed: int, over: DrawnOver = "choices"
) -> list[list[Architecture]]:
    """For each limit of MACs up to `count` distinct subnets to choose one from, of each size of images in turn.

    They are drawn near the limit (`NEAR`), as `draw_population` draws. Where the largest subnet of a size fits, it is
    the first of its size and the others are near it. Were sizes not taken in turn, nearly all would have the one that
    most subnets of those MACs have. The first n of a larger draw are the draw of n. Raises `UserError` for a limit that
    no subnet fits.
    """
    if not limits:
        return []  # samplers of large spaces take seconds
    sizes = [_sampler(cost.within(part), over) for part in reversed(cost.space.by_image_size())]
    candidates = []
    for limit in limits:
        drawn = [_near(sampler, limit, count, seed, over) for sampler in sizes if sampler.min_macs <= limit]
        in_turn = [arch for turn in zip_longest(*drawn) for arch in turn if arch is not None]
        if not in_turn:
            raise UserError(f"no subnet with {limit / 1e6:g} M MACs or fewer is found")
        candidates.append(in_turn[:count])
    return candidates


def _near(sampler: MacsSampler, limit: float, count: int, seed: int, over: DrawnOver) -> list[Architecture]:
    """Distinct subnets near a limit, the largest first if it fits; the smallest where draws miss the few there are."""
    low, high = sampler.below(limit, share=NEAR)
    smallest, largest = sampler.cost.space.smallest(), sampler.cost.space.largest()
    found = [largest] if sampler.cost(largest).macs <= limit else []
    with suppress(UserError):  # the draws miss the few there are
        bucket = Bucket(centre=(low + high) / 2, half=(high - low) / 2)
        found += _drawn(sampler, bucket, count, seed, over)
    if not found and sampler.cost(smallest).macs <= limit:
        found = [smallest]
    return list(dict.fromkeys(found))


def _sampler(cost: CostModel, over: DrawnOver) -> MacsSampler:
    """What draws the subnets that are not even ones."""
    return MacsSampler(cost, over="choices" if over == "even" else over)


def _drawn(sampler: MacsSampler, bucket: Bucket, count: int, seed: int, over: DrawnOver) -> list[Architecture]:
    """Up to `count` distinct subnets of a bucket. Raises `UserError` where none is found."""
    low, high, found = bucket.centre - bucket.half, bucket.centre + bucket.half, dict[Architecture, None]()
    if over == "even":
        rng = derived_rng(seed, "even population", str(bucket))
        found = dict.fromkeys(even_subnets(sampler.cost, rng, low, high, count))
    rng = derived_rng(seed, "population", str(bucket))
    misses = 0
    while len(found) < count and misses < DRAWS_PER_SUBNET:
        try:
            arch = sampler.sample(rng, low, high)
        except UserError:  # there is none, or draws miss what there is
            if found:
                break
            raise
        misses = misses + 1 if arch in found else 0
        found[arch] = None
    return list(found)


def drawn_over(recipe: Recipe) -> DrawnOver:
    """What a supernet's subnets are drawn over where nobody says: even ones where its recipe ends with such."""
    return "even" if "even" in recipe.phases[-1].subnets else "choices"


class ScoreKey(NamedTuple):
    """What says which score of a subnet it is."""

    step: int
    """The training step of the weights."""
    split: SplitName
    images: int
    """How many images of the split: all, or those drawn, which are the same for the same number."""
    calibration: JsonObject
    """`EvaluateSettings` without what a score does not depend on."""

    def has(self, line: SubnetScore) -> bool:
        """Whether a line has such a score."""
        return (line.step, line.split, line.images, line.calibration) == self


def recorded(run: RunDirectory, evaluator: Evaluator, step: int) -> dict[str, SubnetScore]:
    """The lines, by architecture, that were made with the weights of a step as this evaluator would make them."""
    key = score_key(evaluator, step)
    return {line.arch: line for line in run.population() if key.has(line)}


def score_key(evaluator: Evaluator, step: int) -> ScoreKey:
    """Which score this evaluator gives a subnet with the weights of a step."""
    calibration = evaluator.settings.model_dump(exclude={"score_batch"})
    return ScoreKey(step, evaluator.split_name, len(evaluator.split), calibration)


def score_subnets(
    net: Supernet,
    step: int,
    evaluator: Evaluator,
    archs: Sequence[Architecture],
    *,
    on_line: Callable[[SubnetScore], None],
    workers: int | None = None,
    cluster: str = LOCAL,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Score subnets, calling `on_line` with the line of each as it is done, in any order; gives whether all were done.

    `workers`, `cluster` and `should_stop` are `fan_out`'s. A subnet whose loss is no number that a record can hold has
    no line; when the others are done, `NotFiniteError` names it.
    """
    key = score_key(evaluator, step)
    without: dict[Architecture, float] = {}

    def made(chunk: Chunk, scores: list[Score]) -> None:
        for arch, score in zip(chunk, scores, strict=True):
            if not fits_record(score.loss):
                without[arch] = score.loss
                continue
            cost = net.cost_of(arch)
            line = SubnetScore(
                arch=str(arch),
                id=arch.id,
                macs=cost.macs,
                params=cost.params,
                top1=score.top1,
                loss=score.loss,
                images=score.images,
                step=key.step,
                split=key.split,
                calibration=key.calibration,
            )
            on_line(line)

    device = next(net.parameters()).device
    done = fan_out(
        Scoring(net, evaluator, device=str(device) if cluster == LOCAL else device.type),
        chunks_of(archs, workers or (1 if cluster == LOCAL else MANY_WORKERS)),
        on_result=made,
        workers=workers,
        cluster=cluster,
        gpus=int(device.type == "cuda"),
        should_stop=should_stop,
    )
    if done and without:
        split = evaluator.split_name
        arch = min(without, key=str)
        raise NotFiniteError(
            f"{len(without)} of {len(archs)} subnets have no score on {split}, since their loss there is "
            f"not finite or too large; it is {without[arch]:g} for {arch}. The others are recorded"
        )
    return done


def evaluate_population(
    net: Supernet,
    step: int,
    evaluator: Evaluator,
    run: RunDirectory,
    archs: Iterable[Architecture],
    *,
    workers: int | None = None,
    cluster: str = LOCAL,
    on_progress: Callable[[int, SubnetScore], None] = lambda _done, _line: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[SubnetScore]:
    """Score what is not recorded yet of some subnets; returns a line for each, old and new, in order.

    `step` is the training step of the weights. `workers` and `cluster` are `fan_out`'s: who scores; this process
    alone records, and without them also scores. `on_progress` gets, for each subnet scored, how many of them are
    recorded, and its line. Stops early, with what is done recorded, when `should_stop` says so.
    """
    known = recorded(run, evaluator, step)
    wanted = dict.fromkeys(archs)
    missing = [arch for arch in wanted if str(arch) not in known]
    done = len(wanted) - len(missing)

    def record(line: SubnetScore) -> None:
        nonlocal done
        run.append_population(line)
        known[line.arch] = line
        done += 1
        on_progress(done, line)

    score_subnets(
        net, step, evaluator, missing, on_line=record, workers=workers, cluster=cluster, should_stop=should_stop
    )
    return [known[str(arch)] for arch in wanted if str(arch) in known]


@dataclass(frozen=True, kw_only=True)
class BucketSummary:
    """Top-1 in percent over the subnets of a bucket, beside their MACs."""

    bucket: Bucket
    count: int
    macs_mean: float
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float


class ScoredSubnet(Protocol):
    """A subnet with its costs and its top-1 in percent."""

    @property
    def arch(self) -> str: ...
    @property
    def macs(self) -> float: ...
    @property
    def params(self) -> float: ...
    @property
    def top1(self) -> float: ...


S = TypeVar("S", bound=ScoredSubnet)


def summarise(lines: Iterable[ScoredSubnet], buckets: Sequence[Bucket]) -> list[BucketSummary]:
    """One summary for each bucket that has lines."""
    lines = list(lines)
    summaries = []
    for bucket in buckets:
        inside = [line for line in lines if line.macs in bucket]
        if not inside:
            continue
        quantiles = np.percentile([line.top1 for line in inside], [0, 25, 50, 75, 100]).tolist()
        names = ("minimum", "lower_quartile", "median", "upper_quartile", "maximum")
        summaries.append(
            BucketSummary(
                bucket=bucket,
                count=len(inside),
                macs_mean=float(np.mean([line.macs for line in inside])),
                **dict(zip(names, quantiles, strict=True)),
            )
        )
    return summaries


def pareto_front(lines: Iterable[S]) -> list[S]:
    """The lines that no other beats in both MACs and top-1, by rising MACs; of equals, the first by architecture."""
    ordered = sorted(lines, key=lambda line: (line.macs, -line.top1, line.arch))
    return [ordered[place] for place in nondominated([(line.macs, -line.top1) for line in ordered])]


def best_within(lines: Iterable[SubnetScore], fits: Callable[[SubnetScore], bool] = lambda _line: True) -> SubnetScore:
    """Of the lines that keep a budget the one of least loss; of equals that of fewest MACs, then first by architecture.

    The loss on few images tells better than top-1 which subnet has the highest top-1 on others (docs/decisions.md,
    "What is taken out has the least loss"). Raises `UserError` where none fits, naming the smallest.
    """
    lines = list(lines)
    if not lines:
        raise UserError(
            "no subnet has been evaluated yet: run `trainonce evaluate` or `trainonce search` first, or name an "
            "architecture"
        )
    fitting = [line for line in lines if fits(line)]
    if not fitting:
        least = min(lines, key=lambda line: line.macs)
        raise UserError(
            f"no evaluated subnet fits the budget; the smallest of those has {least.macs / 1e6:.3f} M MACs "
            f"and {least.params / 1e6:.3f} M parameters: `trainonce search` with the budget looks for others"
        )
    return min(fitting, key=lambda line: (line.loss, line.macs, line.arch))


def middle_budget(macs: Iterable[float]) -> str:
    """A limit on MACs that half of some subnets keep, or more, as `--max-macs` takes it: 12M. There is at least one."""
    ordered = sorted(macs)
    return f"{plain(ordered[len(ordered) // 2] / 1e6, 2, ROUND_CEILING)}M"


def newest_lines(lines: Iterable[SubnetScore], split: SplitName) -> list[SubnetScore]:
    """The lines on a split that belong together: those of the newest weights, made as the last one of them was, that is
    calibrated alike and scored on as many images."""
    on_split = [line for line in lines if line.split == split]
    step = max((line.step for line in on_split), default=0)
    of_step = [line for line in on_split if line.step == step]
    alike = [(line.calibration, line.images) for line in of_step]
    return [line for line, one in zip(of_step, alike, strict=True) if one == alike[-1]]
