"""Each study's conclusion on made-up lines whose truth is known."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from trainonce.lab.statistics import Comparison, tau
from trainonce.lab.studies.conclude_factorial import factorial_effects
from trainonce.lab.studies.conclude_strategies import baseline_pairs
from trainonce.lab.studies.conclusion import CANNOT_TELL, Conclusion
from trainonce.lab.studies.conclusions import CONCLUSIONS, conclude

Lines = list[dict[str, Any]]
SEEDS = (0, 1, 2)
NOISE = {0: -0.02, 1: 0.0, 2: 0.02}
"""What each seed adds to a difference, in points."""


def a_study(name: str, arms: Iterable[str] = ()) -> dict[str, Any]:
    return {"name": name, "arms": [{"name": arm, "about": ""} for arm in arms], "evaluate": {"split": "test"}}


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


def compared(found: Conclusion, *names: str) -> Comparison:
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


def test_the_baseline_finds_the_differences_that_were_put_in() -> None:
    found = conclude(BASELINE, a_baseline(), [])
    assert found.verdict == "better"
    assert compared(found, "rss", "ps").difference == pytest.approx(3)
    assert compared(found, "rss", "ps-released").difference == pytest.approx(6)
    assert compared(found, "rss", "rss-short").difference == pytest.approx(2)
    assert compared(found, "rss@ps-seconds", "ps").difference == pytest.approx(4)
    assert compared(found, "ps-released", "ps").difference == pytest.approx(-3)
    assert found.sentence == (
        "At equal passes rss is 3.0 points better than ps (95% interval 3.0 to 3.0, 3 seeds, p < 0.001); "
        "at seconds planned to be equal rss@ps-seconds is 4.0 points better than ps (95% interval 4.0 to 4.0, 3 "
        "seeds, corrected p < 0.001); "
        "ps-released is 3.0 points worse than ps (95% interval -3.0 to -3.0, 3 seeds, corrected p < 0.001)."
    )


def test_unequal_passes_are_said() -> None:
    passes = {"rss": 590.0, "ps": 590.3, "rss-short": 180.0, "ps-released": 590.3, "rss@ps-seconds": 900.0}
    times = [a_time(arm, seed, 100) | {"passes": count} for arm, count in passes.items() for seed in SEEDS]
    notes = [note for note in conclude(BASELINE, a_baseline(), times).notes if "equal passes" in note]
    assert notes == [
        "rss and rss-short did not train for equal passes.",
        "rss@ps-seconds and ps did not train for equal passes.",
    ]


def test_the_papers_comparison_is_at_equal_epochs() -> None:
    """Each arm with the rss of its rate; equal passes by the arm that is made for it."""
    tuned, published = {"match": "epochs"}, {"match": "epochs, published rate"}
    lines = [
        *a_population("rss", 53, tuned),
        *a_population("rss-short", 51, {"match": "own"}),
        *a_population("stratified", 54, tuned, noise=0),
        *a_population("ps", 50, tuned, noise=0),
        *a_population("ps@rss-passes", 49, {"match": "passes"}, noise=0),
        *a_population("ps-ofa", 52, tuned, noise=0),
        *a_population("ps-released", 45, tuned, noise=0),
        *a_population("rss-published", 48, published),
        *a_population("ps-published", 46, published, noise=0),
    ]
    found = conclude(a_study("baseline", dict.fromkeys(line["arm"] for line in lines)), lines, [])
    assert {c.names: round(c.difference, 6) for c in found.comparisons} == {
        ("rss", "ps"): 3,
        ("rss", "ps@rss-passes"): 4,
        ("rss", "ps-ofa"): 1,
        ("rss", "ps-released"): 8,
        ("rss", "rss-short"): 2,
        ("rss", "stratified"): -1,
        ("rss", "rss-published"): 5,
        ("rss-published", "ps-published"): 2,
        ("ps-released", "ps-published"): -1,
        ("stratified", "ps@rss-passes"): 5,
    }
    says = found.sentence
    assert says.startswith("At equal epochs rss is 3.0 points better than ps (")
    assert "; at equal passes rss is 4.0 points better than ps@rss-passes (" in says
    assert "; rss is 1.0 points better than ps-ofa (" in says
    assert "; rss is 1.0 points worse than stratified (" in says
    assert "; rss-published is 2.0 points better than ps-published (" in says
    assert "; ps-released is 1.0 points worse than ps-published (" in says
    assert "; stratified is 5.0 points better than ps@rss-passes (" in says


def test_tuning_takes_the_best_mean() -> None:
    """Means over seeds, of which one alone says otherwise; the ends of the grid are said."""
    means = {
        ("rss", 0.01): 50,
        ("rss", 0.03): 52,
        ("rss", 0.08): 51,
        ("ps", 0.01): 40,
        ("ps", 0.03): 41,
        ("ps", 0.08): 45,
    }
    lines = [
        line
        for (strategy, rate), mean in means.items()
        for line in a_population(f"{strategy}@{rate:g}", mean, {"strategy": strategy, "rate": rate})
    ]
    worse = [
        line | {"top1": line["top1"] - 4} if (line["arm"], line["seed"]) == ("rss@0.03", 2) else line for line in lines
    ]
    study = a_study("tuning", dict.fromkeys(line["arm"] for line in lines))
    found = conclude(study, lines, [])
    assert found.verdict == "rss 0.03, ps 0.08"
    assert (
        found.sentence
        == "Rss is best at a rate of 0.03 (57.9); ps is best at a rate of 0.08, the largest tried (50.9)."
    )
    assert conclude(study, worse, []).verdict == "rss 0.08, ps 0.08"
    assert conclude(study, [], []).verdict == CANNOT_TELL


def test_tuning_says_which_rates_have_no_results() -> None:
    lines = [
        line
        for arm, rate, mean in (("rss", 0.01, 50), ("rss", 0.03, 52), ("ps", 0.01, 40))
        for line in a_population(f"{arm}@{rate:g}", mean, {"strategy": arm, "rate": rate})
    ]
    found = conclude(a_study("tuning", ["rss@0.01", "rss@0.03", "ps@0.01", "ps@0.03", "ps-ofa@0.01"]), lines, [])
    assert found.verdict == "rss 0.03, ps 0.01, of 1 of 2 rates"
    assert "ps is best at a rate of 0.01, of 1 of 2 rates" in found.sentence
    assert found.sentence.endswith("ps-ofa has no results.")


@pytest.mark.parametrize(
    ("ratios", "says"),
    [
        ((1.0, 0.9, 1.1), "at equal seconds"),
        ((0.96,) * 3, "at equal seconds"),
        ((1.06,) * 3, "at 1.06 times the seconds"),
        ((1.13, 1.23, 1.33), "at 1.23 times the seconds"),
        ((0.5,), "at 0.50 times the seconds"),
    ],
)
def test_equal_seconds_are_those_that_were_taken(ratios: tuple[float, ...], says: str) -> None:
    times = [a_time("ps", seed, 100 * (1 + seed)) for seed in SEEDS]
    times += [a_time("rss@ps-seconds", s, 100 * (1 + s) * ratio) for s, ratio in zip(SEEDS, ratios, strict=False)]
    assert f"; {says} rss@ps-seconds is 4.0 points better" in conclude(BASELINE, a_baseline(), times).sentence


def test_medians_are_those_of_each_bucket() -> None:
    rows = conclude(BASELINE, a_baseline(), []).tables["medians"]
    row = next(row for row in rows if (row["arm"], row["bucket"]) == ("ps", 14.0))
    assert row["median"] == pytest.approx(50 + 7 + 0.45 + 1)
    assert row["low"] < row["median"] < row["high"]
    assert (row["seeds"], row["subnets"]) == (3, 30)
    assert len(rows) == 10


def test_buckets_are_compared_one_by_one() -> None:
    lines = [
        line | {"top1": line["top1"] + 2 * (line["arm"] == "rss" and line["bucket"] == 4.0)} for line in a_baseline()
    ]
    rows = [row for row in conclude(BASELINE, lines, []).tables["buckets"] if (row["a"], row["b"]) == ("rss", "ps")]
    assert [row["difference"] for row in rows] == pytest.approx([5, 3])


def test_seeds_that_disagree_cannot_tell() -> None:
    found = conclude(BASELINE, a_baseline(rss=50.3, noise=60), [])
    assert found.verdict == CANNOT_TELL
    assert found.sentence.startswith("At equal passes cannot tell whether rss and ps differ: ")


def test_one_seed_cannot_tell() -> None:
    found = conclude(BASELINE, [line for line in a_baseline() if line["seed"] == 0], [])
    assert found.verdict == CANNOT_TELL
    assert found.notes[0].startswith("One seed says nothing")


def test_only_seeds_and_subnets_of_both_count() -> None:
    """A seed that rss lacks, and subnets that ps lacks, change nothing."""
    extra = [a_line("ps", 7, {"match": "passes"}, "4.0-0", 0, bucket=4.0)]
    extra += [a_line("rss", seed, {"match": "passes"}, "other", 0, bucket=4.0) for seed in SEEDS]
    assert compared(conclude(BASELINE, a_baseline() + extra, []), "rss", "ps").difference == pytest.approx(3)


def test_other_splits_and_probes_do_not_count() -> None:
    extra = [a_line("rss", s, {"match": "passes"}, "4.0-0", 0, bucket=4.0, split="validate") for s in SEEDS]
    extra += [a_line("rss", s, {"match": "passes"}, "4.0-0", 0, bucket=4.0, probe=True) for s in SEEDS]
    assert conclude(BASELINE, a_baseline() + extra, []) == conclude(BASELINE, a_baseline(), [])


def test_reduction_factors_are_ratios_at_the_same_seed() -> None:
    times = [a_time("ps", s, 800 * (1 + s)) for s in SEEDS] + [a_time("rss", s, 400 * (1 + s)) for s in SEEDS]
    rows = {row["arm"]: row for row in conclude(BASELINE, a_baseline(), times).tables["seconds"]}
    assert rows["rss"]["factor"] == pytest.approx(2)
    assert rows["rss"]["smallest_factor"] == rows["rss"]["largest_factor"] == 2
    assert rows["rss"]["seconds"] == 800
    assert rows["ps"]["factor"] == pytest.approx(1)


def test_times_that_do_not_compare_are_said_to() -> None:
    times = [a_time("ps", 0, 800), a_time("rss", 0, 400, beside=2)]
    assert "do not compare" in conclude(BASELINE, a_baseline(), times).notes[-1]
    times = [a_time("ps", 0, 800, beside=None), a_time("rss", 0, 400, beside=None)]
    assert "may not compare" in conclude(BASELINE, a_baseline(), times).notes[-1]


def test_arms_are_compared_inside_their_match() -> None:
    match = {"ps": "passes", "rss": "passes", "ps@rss-seconds": "seconds", "rss@s": "seconds", "sandwich": "passes"}
    assert baseline_pairs(match) == [("rss", "ps"), ("rss@s", "ps@rss-seconds"), ("rss", "sandwich")]


@pytest.mark.parametrize(
    ("tuned", "published"),
    [
        ((), ("rss", "ps")),
        (("ps",), ("rss", "ps-published")),
        (("rss",), ("rss-published", "ps")),
        (("rss", "ps"), ("rss-published", "ps-published")),
    ],
)
def test_what_was_registered_is_compared(tuned: tuple[str, ...], published: tuple[str, str]) -> None:
    """Whichever of rss and ps has a tuned rate beside its published one."""
    arms = ["rss", "stratified", "ps", "ps@rss-passes", "ps-released", *(f"{arm}-published" for arm in tuned)]
    pairs = baseline_pairs(dict.fromkeys(arms, "epochs"))
    assert ("rss", "ps") in pairs
    assert published in pairs
    assert ("ps-released", published[1]) in pairs
    assert ("stratified", "ps@rss-passes") in pairs
    assert len(set(pairs)) == len(pairs)


# dose


def doses(slope: float, all_gap: float, seed_noise: float = 0.01, names: bool = True) -> Lines:
    """Two probes at K = 1, 2, 4, 16, 64 and all; `slope` points for each doubling, and all `all_gap` from K = 1."""
    lines = []
    for seed, (number, probe), dose in product(SEEDS, enumerate("pq"), (1, 2, 4, 16, 64, "all")):
        change = all_gap if dose == "all" else slope * math.log2(dose)  # type: ignore[arg-type]
        change *= 1 + (seed - 1) * seed_noise
        factors = {"probe": probe, "subnets": dose} if names else {"probe": number, "dose": dose}
        lines.append(a_line(f"k-{dose}", seed, factors, probe, 60 + 5 * number + seed + change, probe=True))
        if names:
            lines.append(a_line(f"k-{dose}", seed, factors, "qp"[number], 0, probe=True))
    return lines


@pytest.mark.parametrize(
    ("slope", "all_gap", "verdict"),
    [(-0.5, -4, "falling"), (0.5, 4, "rising"), (-0.01, 0.02, "flat"), (-0.5, 4, CANNOT_TELL), (0, -3, "falling")],
)
@pytest.mark.parametrize("names", [True, False])
def test_doses(slope: float, all_gap: float, verdict: str, names: bool) -> None:
    """Whether the factor names the probe's architecture or its number."""
    found = conclude(a_study("dose"), doses(slope, all_gap, names=names), [])
    assert found.verdict == verdict
    assert compared(found, "64 subnets", "1 subnet").difference == pytest.approx(6 * slope)
    assert compared(found, "all subnets", "1 subnet").difference == pytest.approx(all_gap)
    slopes = [row["points_per_doubling"] for row in found.tables["slopes"]]
    assert slopes == pytest.approx([slope * (1 + (s - 1) * 0.01) for s in SEEDS for _ in "pq"])


def test_the_dose_sentence() -> None:
    assert conclude(a_study("dose"), doses(-0.5, -4), []).sentence == (
        "Sharing weights with more subnets costs accuracy (net interference): along the fitted line a probe's top-1 "
        "falls by 3.0 points from 1 subnet to 64 subnets (95% interval -3.1 to -2.9, 3 seeds, corrected p < 0.001); "
        "a probe's top-1 falls by 4.0 points from 1 subnet to all subnets (95% interval -4.1 to -3.9, 3 seeds, "
        "corrected p < 0.001)."
    )


def test_a_probe_alone_for_as_long_tells_transfer_from_harm() -> None:
    """What others' steps are worth lies between nothing and steps of one's own."""
    double = [
        a_line("k-1-double", s, {"probe": n, "dose": 1, "turns": "double"}, p, 60 + 5 * n + s + 6, probe=True)
        for s, (n, p) in product(SEEDS, enumerate("pq"))
    ]
    found = conclude(a_study("dose"), doses(0.5, 4, names=False) + double, [])
    assert found.verdict == "rising"
    assert compared(found, "all subnets", "1 subnet").difference == pytest.approx(4)
    against = compared(found, "all subnets", "the probe alone for as many steps in all")
    assert against.difference == pytest.approx(-2)
    assert against.sentence in found.sentence


def test_noisy_doses_cannot_tell() -> None:
    found = conclude(a_study("dose"), doses(-0.2, -1, seed_noise=5), [])
    assert found.verdict == CANNOT_TELL
    assert found.sentence.startswith("Cannot tell whether sharing weights")


def test_dose_table_has_the_mean_at_every_dose() -> None:
    rows = conclude(a_study("dose"), doses(-0.5, -4), []).tables["doses"]
    means = {row["subnets"]: row["top1"] for row in rows if row["probe"] == "all probes"}
    assert list(means) == [1, 2, 4, 16, 64, "all"]
    assert list(means.values()) == pytest.approx([63.5, 63, 62.5, 61.5, 60.5, 59.5])


# solo

PROBES = [f"p{i}" for i in range(8)]


def solo(gap: float, noise: float = 0.05, buckets: bool = False, roles: bool = True) -> Lines:
    """Eight probes: inside 60, 61 … 67; alone `gap` better at equal exposure and 3 points more at equal epochs."""
    lines = []
    for seed, (i, probe) in product(SEEDS, enumerate(PROBES)):
        more = {"probe": True, "bucket": float(i // 4) if buckets else None}
        inside = {"role": "supernet"} if roles else {"match": "supernet"}
        lines.append(a_line("supernet", seed, inside, probe, 60 + i, **more))
        for match, extra in (("exposure", 0), ("epochs", 3)):
            factors = {"match": match, "probe": probe if roles else i} | ({"role": "alone"} if roles else {})
            alone = 60 + (i ^ 1) + gap + extra + noise * (seed - 1)
            lines.append(a_line(f"alone-{match}", seed, factors, probe, alone, **more))
    return lines


@pytest.mark.parametrize(
    ("gap", "noise", "verdict"),
    [(2, 0.05, "worse off inside"), (-2, 0.05, "better off inside"), (0.1, 0.05, "equivalent"), (1, 3, CANNOT_TELL)],
)
@pytest.mark.parametrize("roles", [True, False])
def test_solo_gaps(gap: float, noise: float, verdict: str, roles: bool) -> None:
    lines = [line | {"top1": 66.0} if "supernet" in line["arm"] else line for line in solo(gap, noise, roles=roles)]
    lines = [
        line if line["arm"] == "supernet" else line | {"top1": 66 + gap + noise * (line["seed"] - 1)} for line in lines
    ]
    found = conclude(a_study("solo"), lines, [])
    assert found.verdict == verdict
    assert compared(found, "alone at equal exposure", "inside the supernet").difference == pytest.approx(gap)
    assert found.tables["ranks"] == [], "nothing has an order"


def test_solo_says_both_matches_and_ranks() -> None:
    found = conclude(a_study("solo"), solo(2), [])
    assert compared(found, "alone at equal epochs", "inside the supernet").difference == pytest.approx(5)
    expected = tau(range(8), [i ^ 1 for i in range(8)])
    row = found.tables["ranks"][0]
    assert row["tau"] == pytest.approx(expected)
    assert (row["ceiling"], row["ceiling_low"], row["ceiling_high"]) == pytest.approx((1, 1, 1))
    assert row["low"] < row["tau"] < row["high"]
    assert found.sentence.startswith("At equal exposure a subnet trained alone is 2.0 points better than inside the")
    assert found.sentence.endswith("where two stand-alone seeds agree with 1.00.")
    assert row["pairs"] == 28
    assert "across sizes" in found.notes[-1]
    assert any("harmed there or trained less" in note for note in found.notes), "at no length is it called harm"
    gaps = [row["gap"] for row in found.tables["probes"] if row["match"] == "exposure"]
    assert gaps == pytest.approx([3, 1] * 4)


def test_solo_keeps_two_supernets_apart() -> None:
    lines = [line for line in solo(2, roles=False) if line["arm"] != "supernet"]
    for name, more in (("rss", 0), ("spos", 3)):
        inside = [line for line in solo(2, roles=False) if line["arm"] == "supernet"]
        factors = {"match": "supernet", "strategy": name}
        lines += [x | {"arm": f"supernet-{name}", "factors": factors, "top1": x["top1"] + more} for x in inside]
    found = conclude(a_study("solo"), lines, [])
    assert {c.names: round(c.difference, 6) for c in found.comparisons} == {
        ("alone at equal exposure", "inside the supernet of rss"): 2,
        ("alone at equal exposure", "inside the supernet of spos"): -1,
        ("alone at equal epochs", "inside the supernet of rss"): 5,
        ("alone at equal epochs", "inside the supernet of spos"): 2,
    }
    assert found.verdict == "worse off inside"


def test_ranks_are_inside_buckets_where_probes_share_them() -> None:
    """In each bucket of four, two of the six pairs are exchanged."""
    row = conclude(a_study("solo"), solo(2, buckets=True), []).tables["ranks"][0]
    assert row["in_buckets"]
    assert row["tau"] == pytest.approx((4 - 2) / 6)


def test_an_order_of_few_pairs_is_not_spoken_of() -> None:
    """Two buckets of four probes have twelve pairs."""
    found = conclude(a_study("solo"), solo(2, buckets=True), [])
    assert found.tables["ranks"][0]["pairs"] == 12
    assert found.sentence.endswith("; of ranks it says nothing: tau-b would rest on 12 pairs of subnets.")


# factorial


def cells(effect: dict[str, float], noise: float = 0.02, shared: bool = True) -> Lines:
    """All eight cells; half of each effect is added at the high level and taken off at the low one."""
    lines = []
    for order, teacher, sampler in product((-1, 1), repeat=3):
        factors = {
            "order": "shrinking" if order > 0 else "none",
            "distillation": "yes" if teacher > 0 else "no",
            "sampler": "stratified" if sampler > 0 else "uniform",
        }
        sign = {"order": order, "distillation": teacher, "sampler": sampler, "order x sampler": order * sampler}
        arm = f"{order}{teacher}{sampler}"
        for seed, i in product(SEEDS, range(5)):
            change = sum(sign[name] * size / 2 * (1 + noise * (seed - 1)) for name, size in effect.items())
            arch = f"a{i}" if shared else f"{arm}-{i}"
            lines.append(a_line(arm, seed, factors, arch, 60 + i + 3 * seed + change, bucket=4.0))
    return lines


@pytest.mark.parametrize("shared", [True, False])
def test_factorial_effects_are_those_put_in(shared: bool) -> None:
    truth = {"order": 1.0, "distillation": -0.4, "sampler": 3.0, "order x sampler": 0.6}
    found = factorial_effects(cells(truth, shared=shared))
    means = {name: np.mean([np.mean(values) for values in by_seed.values()]) for name, by_seed in found.items()}
    expected = truth | {"order x distillation": 0, "distillation x sampler": 0}
    assert means == pytest.approx(expected)
    assert len(found["order"][0]) == (5 if shared else 1)


def test_effects_are_the_coefficients_of_least_squares() -> None:
    """Twice the coefficients of a regression on -1 and 1, on noise."""
    rng = np.random.default_rng(0)
    lines = [line | {"top1": float(rng.normal())} for line in cells({}) if line["seed"] == 0 and line["arch"] == "a0"]
    signs = np.array(
        [
            [1 if line["factors"][n] in ("shrinking", "yes", "stratified") else -1 for n in line["factors"]]
            for line in lines
        ]
    )
    o, d, s = signs.T
    design = np.stack([np.ones(8), o, d, s, o * d, o * s, d * s], axis=1)
    fitted = np.linalg.lstsq(design, np.array([line["top1"] for line in lines]), rcond=None)[0]
    found = factorial_effects(lines)
    assert [values[0][0] for values in found.values()] == pytest.approx((2 * fitted[1:]).tolist())


@pytest.mark.parametrize(
    ("effect", "noise", "verdict", "says"),
    [
        ({"sampler": 3.0, "order": 0.5}, 0.02, "selection bias", "mitigation matters less than selection bias: "),
        (
            {"sampler": -3.0, "order": 0.5},
            0.02,
            "sampler hurts",
            "the sampler matters more, and it hurts: the sampler ",
        ),
        ({"sampler": 0.5, "distillation": -3.0}, 0.02, "mitigation", "matters 2.5 points less than "),
        ({"sampler": 0.1, "order": 0.1}, 0.02, "equivalent", "matters as much as selection bias, within 0.5 points"),
        ({"sampler": 1.0, "order": 0.1}, 3, CANNOT_TELL, "cannot tell whether mitigation matters less"),
        ({"sampler": 1.0, "order": 3.0, "distillation": -2.9}, 0.02, "mitigation", "mitigation matters more"),
    ],
)
def test_factorial_verdicts(effect: dict[str, float], noise: float, verdict: str, says: str) -> None:
    """The last: order and distillation nearly cancel as a package, yet each matters more than the sampler."""
    found = conclude(a_study("factorial"), cells(effect, noise), [])
    assert found.verdict == verdict
    assert says in found.sentence
    largest = max(effect, key=lambda name: abs(effect[name]))
    assert found.sentence.startswith(("The largest effect is", "The largest estimate is"))
    assert f" {largest}: " in found.sentence or verdict == "equivalent"


def test_six_effects_are_corrected_together() -> None:
    """An order whose p is 0.02 by itself: six times that is no effect; and the sampler's is tested beside it."""
    alone = conclude(a_study("factorial"), cells({"order": 3.0}, noise=0.2457), [])
    found = compared(alone, "order shrinking", "order none")
    assert found.p_difference == pytest.approx(0.0195, abs=0.0005)
    assert found.p_holm == pytest.approx(6 * 0.0195, abs=0.003)
    assert found.low is not None
    assert found.low > 0
    assert found.verdict == CANNOT_TELL
    assert "whether shrinking order instead of none matters cannot be told (+3.0 points" in found.sentence
    assert "corrected p = 0.12" in found.sentence


def test_the_comparison_that_baseline_is_made_for_is_tested_by_itself() -> None:
    found = conclude(BASELINE, a_baseline(), [])
    assert compared(found, "rss", "ps").p_holm is None
    assert all(one.p_holm is not None for one in found.comparisons if one.names != ("rss", "ps"))


def test_notes_say_how_many_seeds_equivalence_takes() -> None:
    """Seeds that differ by ±0.3 (their standard deviation): five, as docs/statistics.md has it."""
    found = conclude(BASELINE, a_baseline(noise=15), [])
    assert compared(found, "rss", "ps").sd == pytest.approx(0.3)
    assert any("0.30 points between seeds" in note and "takes 5 seeds" in note for note in found.notes)


def test_a_missing_cell_cannot_tell() -> None:
    lines = [line for line in cells({"sampler": 3.0}) if line["arm"] != "111"]
    assert conclude(a_study("factorial"), lines, []).sentence == "Cannot tell: no seed has results in all eight cells."


# geometry


def geometries(paper: float, cifar: float, noise: float = 1, factor: bool = True) -> Lines:
    lines = []
    for geometry, difference in (("paper", paper), ("cifar", cifar)):
        for strategy in ("ps", "rss"):
            factors = {"geometry": geometry} | ({"strategy": strategy} if factor else {})
            rss = strategy == "rss"
            mean = (50 if geometry == "paper" else 80) + difference * rss
            lines += a_population(f"{strategy}-{geometry}", mean, factors, noise=noise * rss)
    return lines


@pytest.mark.parametrize(
    ("paper", "cifar", "noise", "verdict"),
    [
        (3, 2, 1, "same order"),
        (3, -1, 1, "other order"),
        (-1, 3, 1, "other order"),
        (3, 0, 1, "other size"),
        (-3, -0.2, 1, "other size"),
        (0, 0.1, 1, "same order"),
        (3, 3, 200, CANNOT_TELL),
    ],
)
@pytest.mark.parametrize("factor", [True, False])
def test_geometries(paper: float, cifar: float, noise: float, verdict: str, factor: bool) -> None:
    found = conclude(a_study("geometry"), geometries(paper, cifar, noise, factor), [])
    assert found.verdict == verdict
    for geometry, difference in (("paper", paper), ("cifar", cifar)):
        names = (f"rss in the {geometry} geometry", f"ps in the {geometry} geometry")
        assert compared(found, *names).difference == pytest.approx(difference)
    assert found.comparisons[-1].difference == pytest.approx(cifar - paper)
    assert found.sentence.startswith("In the paper geometry ")


def test_one_geometry_alone_cannot_tell() -> None:
    lines = [line for line in geometries(3, 2) if line["factors"]["geometry"] == "paper"]
    found = conclude(a_study("geometry"), lines, [])
    assert found.verdict == CANNOT_TELL
    assert "rss is 3.0 points better" in found.sentence


# all


@pytest.mark.parametrize("name", [*CONCLUSIONS, "of my own"])
def test_no_results_cannot_tell(name: str) -> None:
    found = conclude(a_study(name), [], [])
    assert found.verdict == CANNOT_TELL
    assert found.sentence.startswith("Cannot tell: ")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("baseline", a_baseline()),
        ("dose", doses(-0.5, -4)),
        ("solo", solo(1)),
        ("factorial", cells({"sampler": 1.0})),
        ("geometry", geometries(3, 2)),
        ("my own", a_baseline()),
    ],
)
def test_conclusions_are_json_and_say_one_sentence(name: str, lines: Lines) -> None:
    found = conclude(BASELINE | {"name": name}, lines, [a_time("ps", 0, 10.0), a_time("rss", 0, 5.0)])
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["sentence"] == found.sentence
    assert found.sentence.endswith(".")
    assert ". " not in found.sentence
    assert all(len({tuple(row) for row in rows}) <= 1 for rows in found.tables.values()), "rows of equal keys"
    assert found == conclude(BASELINE | {"name": name}, lines, [a_time("ps", 0, 10.0), a_time("rss", 0, 5.0)])


def test_a_score_that_is_no_number_is_refused() -> None:
    lines = a_baseline()
    lines[0]["top1"] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        conclude(BASELINE, lines, [])


def test_the_design_decides_and_not_the_name() -> None:
    """But where none is recorded, the name does."""
    lines, own = a_baseline(), BASELINE | {"name": "baseline", "design": None}
    assert conclude(own, lines, []) == replace(conclude(BASELINE | {"name": "mine"}, lines, []), study="baseline")
    assert conclude(BASELINE | {"design": "baseline"}, lines, []) == conclude(BASELINE, lines, [])
    assert conclude(own, lines, []).sentence != conclude(BASELINE, lines, []).sentence


def test_a_study_of_ones_own_compares_with_its_first_arm() -> None:
    found = conclude(BASELINE | {"name": "mine"}, a_baseline(), [])
    assert [comparison.names[1] for comparison in found.comparisons] == ["ps-released"] * 4
    assert found.verdict == "better"
