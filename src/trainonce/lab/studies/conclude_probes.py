"""What the studies of single subnets force: `dose` and `solo`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product

import numpy as np

from trainonce.lab.statistics import (
    Comparison,
    against_zero,
    compare,
    corrected,
    over_seeds,
    tau_ceiling,
    tau_in_buckets,
    tau_interval,
)
from trainonce.lab.studies.conclusion import (
    CANNOT_TELL,
    HOLM_NOTE,
    MARGIN,
    Conclusion,
    Line,
    Row,
    Study,
    by_seed,
    compare_lines,
    interval_columns,
    needed_notes,
    probe_lines,
    says,
    seeds_note,
    sentence_of,
    undecided,
    where,
)

WORSE_INSIDE, BETTER_INSIDE = "worse off inside", "better off inside"
DOUBLE_TURNS = "double turns"
"""The dose of a probe alone that has the turns of the others too."""
ALONE_AS_LONG = "the probe alone for as many steps in all"
MIN_PAIRS = 20
"""Pairs of subnets in common buckets below which an order is not spoken of."""


def conclude_dose(study: Study, results: Sequence[Line], times: Sequence[Line]) -> Conclusion:
    """Does a probe's top-1 fall, rise, or stay when more subnets share its weights, its own exposure held constant?

    A line is fitted to top-1 against log2 K for each seed and probe. What is compared is what the line changes from the
    smallest to the largest K, in points, so that the margin means the same as elsewhere.
    """
    doses = _doses(probe_lines(study, results))
    slopes = {key: _slope(found) for key, found in doses.items() if len(_numbers(found)) > 1}
    comparisons = _dose_comparisons(doses, slopes)
    if not comparisons:
        return undecided(study, "no probe has results at two doses for the same seed")
    verdict = _dose_verdict({found.verdict for found in comparisons if found.names[1] != ALONE_AS_LONG})
    return Conclusion(
        study=study["name"],
        sentence=sentence_of(
            f"{_DOSE_LEADS[verdict]}: {comparisons[0].sentence}", *(c.sentence for c in comparisons[1:])
        ),
        verdict=verdict,
        comparisons=comparisons,
        tables={
            "doses": _dose_rows(doses),
            "slopes": [
                {"seed": seed, "probe": probe, "points_per_doubling": slope}
                for (seed, probe), slope in sorted(slopes.items())
            ],
        },
        notes=(
            seeds_note(comparisons[0].seeds),
            *needed_notes(comparisons[0]),
            HOLM_NOTE,
            "Steps of others may both train a probe's weights and spoil them: where its top-1 stays, they may cancel.",
        ),
    )


def _dose_comparisons(
    doses: Mapping[tuple[int, str], Mapping[int | str, float]], slopes: Mapping[tuple[int, str], float]
) -> tuple[Comparison, ...]:
    """What the fitted line changes from the smallest to the largest K, and all subnets against the smallest K."""
    numbers = sorted({k for found in doses.values() for k in _numbers(found)})
    found = []
    least = numbers[0] if numbers else 1
    few = f"{least} subnet{'s' * (least > 1)}"
    if slopes:
        span = math.log2(numbers[-1] / least)
        changes = _grouped({key: slope * span for key, slope in slopes.items()})
        found.append(
            replace(against_zero(changes, name="change", margin=MARGIN), names=(f"{numbers[-1]} subnets", few))
        )
    for other, name in ((least, few), (DOUBLE_TURNS, ALONE_AS_LONG)):
        both = {key: (at["all"], at[other]) for key, at in doses.items() if "all" in at and other in at}
        if both:
            left, right = (_grouped({key: pair[i] for key, pair in both.items()}) for i in (0, 1))
            found.append(compare(left, right, margin=MARGIN, names=("all subnets", name)))
    leads = ("along the fitted line ", "", "") if slopes else ("", "")
    return tuple(replace(c, sentence=_dose_says(c, lead)) for c, lead in zip(corrected(found), leads, strict=False))


_DOSE_LEADS = {
    "falling": "sharing weights with more subnets costs accuracy (net interference)",
    "rising": "sharing weights with more subnets adds accuracy (net transfer)",
    "flat": "sharing weights with more subnets makes no difference, or harm and transfer cancel",
    CANNOT_TELL: "cannot tell whether sharing weights with more subnets matters",
}


def _dose_says(found: Comparison, lead: str) -> str:
    way = f"from {found.names[1]} to {found.names[0]}"
    return lead + says(
        found,
        better=f"a probe's top-1 rises by {{}} {way}",
        worse=f"a probe's top-1 falls by {{}} {way}",
        equivalent=f"a probe's top-1 stays within {found.margin:g} points {way}",
        cannot_tell=f"whether a probe's top-1 changes {way} cannot be told",
    )


def _dose_verdict(verdicts: set[str]) -> str:
    if verdicts == {"equivalent"}:
        return "flat"
    if "worse" in verdicts and "better" not in verdicts:
        return "falling"
    return "rising" if "better" in verdicts and "worse" not in verdicts else CANNOT_TELL


def _doses(lines: Sequence[Line]) -> dict[tuple[int, str], dict[int | str, float]]:
    """Top-1 by (seed, probe) and number of subnets."""
    found: dict[tuple[int, str], dict[int | str, float]] = {}
    for line in lines:
        subnets = str(line["factors"].get("subnets", line["factors"].get("dose", "")))
        dose: int | str = int(subnets) if subnets.isdigit() else subnets
        dose = DOUBLE_TURNS if line["factors"].get("turns") == "double" else dose
        found.setdefault((line["seed"], line["arch"]), {})[dose] = line["top1"]
    return found


def _numbers(found: Mapping[int | str, float]) -> list[int]:
    return sorted(k for k in found if isinstance(k, int))


def _slope(found: Mapping[int | str, float]) -> float:
    """Points per doubling: the least-squares line through top-1 against log2 of the number of subnets."""
    numbers = _numbers(found)
    return float(np.polyfit(np.log2(numbers), [found[k] for k in numbers], 1)[0])


def _grouped(values: Mapping[tuple[int, str], float]) -> dict[int, list[float]]:
    """By seed, the probes in one order."""
    groups: dict[int, list[float]] = {}
    for (seed, _), value in sorted(values.items()):
        groups.setdefault(seed, []).append(value)
    return groups


def _dose_rows(doses: Mapping[tuple[int, str], Mapping[int | str, float]]) -> list[Row]:
    """Mean top-1 at each dose over all probes, and of each probe, with intervals over seeds."""
    rows = []
    kinds = sorted({k for found in doses.values() for k in found}, key=lambda k: (isinstance(k, str), k))
    for probe in ["all probes", *sorted({probe for _, probe in doses})]:
        for dose in kinds:
            values = {k: v[dose] for k, v in doses.items() if dose in v and probe in ("all probes", k[1])}
            if values:
                groups = _grouped(values)
                interval = over_seeds(list(groups.values()))
                row = {"probe": probe, "subnets": dose, "top1": interval.estimate, **interval_columns(interval)}
                rows.append(row | {"seeds": len(groups)})
    return rows


def conclude_solo(study: Study, results: Sequence[Line], times: Sequence[Line]) -> Conclusion:
    """Is a subnet better off trained alone than inside the supernet? And does the supernet rank subnets rightly?

    A subnet that is worse off inside may have been harmed there or trained less: this study alone cannot tell.
    """
    lines = probe_lines(study, results)
    supernet = [line for line in lines if _role(line) == "supernet"]
    alone = [line for line in lines if _role(line) == "alone"]
    matches = sorted({str(line["factors"].get("match", "own")) for line in alone}, key=lambda m: (m != "exposure", m))
    compared, gaps, ranks = [], [], []
    strategies = dict.fromkeys(line["factors"].get("strategy") for line in supernet)
    for strategy, match in product(strategies, matches):
        own = [line for line in alone if str(line["factors"].get("match", "own")) == match]
        of = supernet if strategy is None else where(supernet, strategy=strategy)
        inside = where(of, match=match) or of
        place = "inside the supernet" if strategy is None else f"inside the supernet of {strategy}"
        found = compare_lines(own, inside, (f"alone at equal {match}", place))
        if found is None:
            continue
        compared.append(found)
        label = match if strategy is None else f"{match}, {strategy}"
        gaps += _gaps(label, own, inside)
        ranks += _ranks(label, own, inside)
    if not compared:
        return undecided(study, "no seed has a subnet both alone and inside the supernet")
    comparisons = [replace(found, sentence=_solo_says(found)) for found in corrected(compared)]
    return Conclusion(
        study=study["name"],
        sentence=sentence_of(*(found.sentence for found in comparisons), _rank_says(ranks)),
        verdict={"better": WORSE_INSIDE, "worse": BETTER_INSIDE}.get(comparisons[0].verdict, comparisons[0].verdict),
        comparisons=tuple(comparisons),
        tables={"gaps": gaps, "probes": _gap_by_probe(gaps), "ranks": ranks},
        notes=(
            seeds_note(comparisons[0].seeds),
            *needed_notes(comparisons[0]),
            HOLM_NOTE,
            "A subnet that is worse off inside may have been harmed there or trained less; only where subnets alone "
            "have nothing left to learn does it speak of harm.",
            *(row["note"] for row in ranks[:1] if row["note"]),
        ),
    )


def _role(line: Line) -> str:
    """Whether a subnet was trained "alone" or inside the "supernet"; a design may say so in `match`."""
    factors = line["factors"]
    return str(factors.get("role", "supernet" if factors.get("match") == "supernet" else "alone"))


def _solo_says(found: Comparison) -> str:
    match, place = found.names[0].removeprefix("alone "), found.names[1]
    return says(
        found,
        better=f"{match} a subnet trained alone is {{}} better than {place}",
        worse=f"{match} a subnet trained alone is {{}} worse than {place}",
        equivalent=f"{match} a subnet is as good alone as {place}, within {found.margin:g} points",
        cannot_tell=f"cannot tell whether {match} a subnet is worse or better off {place}",
    )


def _gaps(match: str, alone: Sequence[Line], inside: Sequence[Line]) -> list[Row]:
    within = {(line["seed"], line["arch"]): line["top1"] for line in inside}
    found = {(line["seed"], line["arch"]): line for line in alone if (line["seed"], line["arch"]) in within}
    return [
        {
            "match": match,
            "seed": seed,
            "probe": arch,
            "macs": line["macs"],
            "alone": line["top1"],
            "inside": within[seed, arch],
            "gap": line["top1"] - within[seed, arch],
        }
        for (seed, arch), line in sorted(found.items())
    ]


def _gap_by_probe(gaps: Sequence[Row]) -> list[Row]:
    rows = []
    for match, probe, macs in dict.fromkeys((row["match"], row["probe"], row["macs"]) for row in gaps):
        own = [[row["gap"]] for row in gaps if (row["match"], row["probe"]) == (match, probe)]
        interval = over_seeds(own)
        row = {"match": match, "probe": probe, "macs": macs, "gap": interval.estimate, **interval_columns(interval)}
        rows.append(row | {"seeds": len(own)})
    return rows


def _ranks(match: str, alone: Sequence[Line], inside: Sequence[Line]) -> list[Row]:
    """Tau-b between supernet and stand-alone top-1 beside its ceiling; in buckets where two probes share one."""
    own, within = by_seed(alone), by_seed(inside)
    seeds = sorted(set(own) & set(within))
    probes = sorted(set.intersection(*(set(own[s]) & set(within[s]) for s in seeds))) if seeds else []
    if len(probes) < 2:
        return []
    bucket_of = {line["arch"]: line["bucket"] for line in inside}
    inner = [bucket_of[probe] for probe in probes]
    shared = any(inner.count(bucket) > 1 for bucket in inner if bucket is not None)
    buckets = inner if shared else [0.0] * len(probes)
    pairs = [([within[s][p] for p in probes], [own[s][p] for p in probes]) for s in seeds]
    if not any(math.isfinite(tau_in_buckets(*pair, buckets)) for pair in pairs):
        return []
    agreement = tau_interval(pairs, buckets=buckets)
    row: Row = {"match": match, "probes": len(probes), "seeds": len(seeds), "tau": agreement.estimate}
    row |= interval_columns(agreement)
    orders = [order for _, order in pairs]
    ceiling = tau_ceiling(*orders, buckets=buckets) if len(orders) > 1 else math.nan
    row |= {"ceiling": None, "ceiling_low": None, "ceiling_high": None}
    if math.isfinite(ceiling):
        limit = tau_interval(list(combinations(orders, 2)), buckets=buckets)
        row |= {"ceiling": ceiling, "ceiling_low": limit.low, "ceiling_high": limit.high}
    note = "" if shared else "No two probes share a bucket: tau is across sizes, where size alone makes it high."
    sizes = [buckets.count(bucket) for bucket in set(buckets) - {None}]
    return [row | {"in_buckets": shared, "pairs": sum(n * (n - 1) // 2 for n in sizes), "note": note}]


def _rank_says(ranks: Sequence[Row]) -> str:
    if not ranks:
        return ""
    row = ranks[0]
    if row["pairs"] < MIN_PAIRS:
        return f"of ranks it says nothing: tau-b would rest on {row['pairs']} pairs of subnets"
    interval = f"{row['low']:.2f} to {row['high']:.2f}"
    found = f"the supernet ranks {row['probes']} subnets with tau-b {row['tau']:.2f} ({interval})"
    if row["ceiling"] is None:
        return f"{found}, with no two stand-alone seeds to say what is possible"
    return f"{found}, where two stand-alone seeds agree with {row['ceiling']:.2f}"
