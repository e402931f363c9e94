"""Made-up results of studies, whose truth is known."""

import math
from collections.abc import Iterable
from itertools import product
from typing import Any

from tests.support.lines import a_finished, a_result

from trainonce.lab.statistics import SeedComparison
from trainonce.lab.studies import built_in
from trainonce.lab.studies.conclusion import Conclusion
from trainonce.lab.studies.results import RecordedStudy

Lines = list[dict[str, Any]]
SEEDS = (0, 1, 2)
NOISE = {0: -0.02, 1: 0.0, 2: 0.02}
"""What each seed adds to a difference, in points."""


def a_study(name: str, arms: Iterable[str] = ()) -> dict[str, Any]:
    named = [{"name": arm, "about": ""} for arm in arms]
    return {"name": name, "arms": named, "runs": [], "evaluate": {"split": "test"}}


def conclude(study: dict[str, Any], results: Lines, times: Lines) -> Conclusion:
    """The conclusion of made-up files."""
    recorded = RecordedStudy.read(study, where="study.json")
    return built_in.conclude(recorded, [a_result(**line) for line in results], [a_finished(**line) for line in times])


def a_line(arm: str, seed: int, factors: dict[str, Any], arch: str, top1: float, **more: Any) -> dict[str, Any]:
    line = {"run": f"{arm}-seed{seed}", "arm": arm, "seed": seed, "factors": factors, "arch": arch, "macs": 10}
    return line | {"top1": top1, "split": "test", "bucket": None, "probe": False} | more


def a_population(arm: str, mean: float, factors: dict[str, Any], noise: float = 1) -> Lines:
    """Ten subnets in each of two buckets, 5 points apart; each subnet and seed has its own accuracy in every arm."""
    return [
        a_line(
            arm, seed, factors, f"{bucket}-{i}", mean + bucket / 2 + i / 10 + seed + noise * NOISE[seed], bucket=bucket
        )
        for seed, bucket, i in product(SEEDS, (4.0, 14.0), range(10))
    ]


def a_time(arm: str, seed: int, seconds: float, beside: int | None = 1) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "train_seconds": seconds, "passes": 590.0, "threads": 1, "beside": beside}


def compared(found: Conclusion, *names: str) -> SeedComparison:
    return next(comparison for comparison in found.comparisons if comparison.names == names)


# baseline


def a_baseline(rss: float = 53.0, noise: float = 1) -> Lines:
    passes = {"match": "passes"}
    return [
        *a_population("ps-released", 47, passes, noise=0),
        *a_population("ps", 50, passes, noise=0),
        *a_population("rss", rss, passes, noise=noise),
        *a_population("rss-short", 51, {"match": "own"}, noise=0),
        *a_population("rss@ps-seconds", 54, {"match": "seconds"}, noise=noise),
    ]


BASELINE = a_study("baseline", ("ps-released", "ps", "rss", "rss-short", "rss@ps-seconds"))


# dose


def doses(slope: float, all_gap: float, seed_noise: float = 0.01) -> Lines:
    """Two probes at K = 1, 2, 4, 16, 64 and all; `slope` points for each doubling, and all `all_gap` from K = 1."""
    lines = []
    for seed, (number, probe), dose in product(SEEDS, enumerate("pq"), (1, 2, 4, 16, 64, "all")):
        change = all_gap if dose == "all" else slope * math.log2(dose)  # type: ignore[arg-type]
        change *= 1 + (seed - 1) * seed_noise
        factors = {"dose": dose, "probe": number}
        lines.append(a_line(f"k-{dose}", seed, factors, probe, 60 + 5 * number + seed + change, probe=True))
    return lines


# solo

PROBES = [f"p{i}" for i in range(8)]


def solo(gap: float, noise: float = 0.05, buckets: bool = False) -> Lines:
    """Eight probes: inside 60, 61 … 67; alone `gap` better at equal exposure and 3 points more at equal epochs."""
    lines = []
    for seed, (i, probe) in product(SEEDS, enumerate(PROBES)):
        more = {"probe": True, "bucket": float(i // 4) if buckets else None}
        lines.append(a_line("supernet", seed, {"match": "supernet"}, probe, 60 + i, **more))
        for match, extra in (("exposure", 0), ("epochs", 3)):
            factors = {"match": match, "probe": i}
            alone = 60 + (i ^ 1) + gap + extra + noise * (seed - 1)
            lines.append(a_line(f"alone-{match}", seed, factors, probe, alone, **more))
    return lines


# factorial


def cells(effect: dict[str, float], noise: float = 0.02, shared: bool = True) -> Lines:
    """All eight cells; half of each effect is added at the high level and taken off at the low one."""
    lines = []
    for order, teacher, sampler in product((-1, 1), repeat=3):
        factors = {
            "order": "shrinking" if order > 0 else "none",
            "distillation": "teacher" if teacher > 0 else "none",
            "sampler": "stratified" if sampler > 0 else "uniform",
        }
        sign = {"order": order, "distillation": teacher, "sampler": sampler, "order x sampler": order * sampler}
        arm = f"{order}{teacher}{sampler}"
        for seed, i in product(SEEDS, range(5)):
            change = sum(sign[name] * size / 2 * (1 + noise * (seed - 1)) for name, size in effect.items())
            arch = f"a{i}" if shared else f"{arm}-{i}"
            lines.append(a_line(arm, seed, factors, arch, 60 + i + 3 * seed + change, bucket=4.0))
    return lines


# geometry


def geometries(paper: float, cifar: float, noise: float = 1) -> Lines:
    lines = []
    for geometry, difference in (("paper", paper), ("cifar", cifar)):
        for strategy in ("ps", "rss"):
            factors = {"geometry": geometry, "strategy": strategy}
            rss = strategy == "rss"
            mean = (50 if geometry == "paper" else 80) + difference * rss
            lines += a_population(f"{strategy}-{geometry}", mean, factors, noise=noise * rss)
    return lines
