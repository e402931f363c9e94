"""The conclusions of studies that compare strategies, on made-up lines whose truth is known."""

from collections.abc import Iterable
from typing import Any

import pytest
from tests.support.study_results import (
    BASELINE,
    SEEDS,
    a_baseline,
    a_line,
    a_population,
    a_study,
    a_time,
    compared,
    conclude,
    geometries,
)

from trainonce.lab.studies.baseline import pairs_of
from trainonce.lab.studies.built_in import STUDIES
from trainonce.lab.studies.conclusion import CANNOT_TELL
from trainonce.lab.studies.study import StudySetup


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


def a_tuning(grid: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """A `tuning` of these strategies and rates."""
    planned = [(f"{strategy}@{rate:g}", {"strategy": strategy, "rate": rate}) for strategy, rate in grid]
    runs = [{"name": f"{arm}-seed0", "arm": arm, "seed": 0, "factors": factors} for arm, factors in planned]
    return a_study("tuning", [arm for arm, _ in planned]) | {"runs": runs}


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
    study = a_tuning(means)
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
    grid = [("rss", 0.01), ("rss", 0.03), ("ps", 0.01), ("ps", 0.03), ("ps-ofa", 0.01)]
    found = conclude(a_tuning(grid), lines, [])
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


def test_every_arm_has_a_rival() -> None:
    """Of those that are planned; and one of earlier versions, which was trained for as long as ps."""
    assert pairs_of(["ps-released", "ps", "rss", "rss-short", "rss@ps-seconds"]) == [
        ("rss", "ps-released"),
        ("rss", "ps"),
        ("rss", "rss-short"),
        ("rss@ps-seconds", "ps"),
        ("ps-released", "ps"),
    ]
    rates = {"rss": 3.0, "ps": 8.0}
    setup = StudySetup(image_size=8, channels=1, classes=10, train_images=1280, scale=0.1, seeds=(0,), rates=rates)
    arms = [arm.name for arm in STUDIES["baseline"].study(setup).arms]
    assert {arm for pair in pairs_of(arms) for arm in pair} == set(arms)
    assert pairs_of(["ps", "ps-ofa"]) == [], "without rss"


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
    pairs = pairs_of(arms)
    assert ("rss", "ps") in pairs
    assert published in pairs
    assert ("ps-released", published[1]) in pairs
    assert ("stratified", "ps@rss-passes") in pairs
    assert len(set(pairs)) == len(pairs)


def test_the_comparison_that_baseline_is_made_for_is_tested_by_itself() -> None:
    found = conclude(BASELINE, a_baseline(), [])
    assert compared(found, "rss", "ps").p_holm is None
    assert all(one.p_holm is not None for one in found.comparisons if one.names != ("rss", "ps"))


def test_notes_say_how_many_seeds_equivalence_takes() -> None:
    """Seeds that differ by ±0.3 (their standard deviation): five, as docs/statistics.md has it."""
    found = conclude(BASELINE, a_baseline(noise=15), [])
    assert compared(found, "rss", "ps").sd == pytest.approx(0.3)
    assert any("0.30 points between seeds" in note and "takes 5 seeds" in note for note in found.notes)


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
def test_geometries(paper: float, cifar: float, noise: float, verdict: str) -> None:
    found = conclude(a_study("geometry"), geometries(paper, cifar, noise), [])
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
