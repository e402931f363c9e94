"""The conclusions of studies of probes, `dose` and `solo`, on made-up lines whose truth is known."""

from itertools import product

import pytest
from tests.support.study_results import SEEDS, a_line, a_study, compared, conclude, doses, solo

from trainonce.lab.statistics import tau
from trainonce.lab.studies.conclusion import CANNOT_TELL


@pytest.mark.parametrize(
    ("slope", "all_gap", "verdict"),
    [(-0.5, -4, "falling"), (0.5, 4, "rising"), (-0.01, 0.02, "flat"), (-0.5, 4, CANNOT_TELL), (0, -3, "falling")],
)
def test_doses(slope: float, all_gap: float, verdict: str) -> None:
    found = conclude(a_study("dose"), doses(slope, all_gap), [])
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
    found = conclude(a_study("dose"), doses(0.5, 4) + double, [])
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


@pytest.mark.parametrize(
    ("gap", "noise", "verdict"),
    [(2, 0.05, "worse off inside"), (-2, 0.05, "better off inside"), (0.1, 0.05, "equivalent"), (1, 3, CANNOT_TELL)],
)
def test_solo_gaps(gap: float, noise: float, verdict: str) -> None:
    lines = [line | {"top1": 66.0} if "supernet" in line["arm"] else line for line in solo(gap, noise)]
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
    lines = [line for line in solo(2) if line["arm"] != "supernet"]
    for name, more in (("rss", 0), ("spos", 3)):
        inside = [line for line in solo(2) if line["arm"] == "supernet"]
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
