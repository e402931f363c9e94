"""The study `solo`: does a subnet lose or gain from sharing its weights, against being trained alone?"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product

from trainonce.lab.statistics import SeedComparison, corrected, over_seeds, tau_ceiling, tau_in_buckets, tau_interval
from trainonce.lab.studies.conclusion import (
    HOLM_NOTE,
    Conclusion,
    Row,
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
from trainonce.lab.studies.design import Built, Design, at_epochs, cycle_recipe, planned_run
from trainonce.lab.studies.gap import stand_alone_gaps
from trainonce.lab.studies.results import Factors, FinishedRun, RecordedStudy, StudyResult
from trainonce.lab.studies.share import expected_share
from trainonce.lab.studies.study import Arm, StudySetup
from trainonce.recipes import RECIPES

PROBES, BUCKETS = 4, 2
"""Two probes share a bucket, so that ranks can be compared where size does not decide."""
SUPERNETS = {"rss": "one uniform subnet an epoch", "spos": "one uniform subnet a step"}
"""The recipes of the supernets, and what trains them."""
INSIDE = "supernet"
"""The factor `match` of a run that trains the probes inside a supernet; of another, what it has equally with these."""
WORSE_INSIDE, BETTER_INSIDE = "worse off inside", "better off inside"
MIN_PAIRS = 20
"""Pairs of subnets in common buckets below which an order is not spoken of."""


def _build(setup: StudySetup) -> Built:
    supernets = {name: at_epochs(setup, RECIPES[name]) for name in SUPERNETS}
    (steps,) = {setup.steps(recipe) for recipe in supernets.values()}
    probes, buckets = setup.probes(BUCKETS, PROBES // BUCKETS)
    model = setup.model()
    runs = []
    for seed in setup.seeds:
        for name, recipe in supernets.items():
            factors: Factors = {"match": INSIDE, "strategy": name}
            runs.append(planned_run(f"supernet-{name}", seed, recipe, model, factors=factors))
        for number, probe in enumerate(probes):
            share = expected_share(setup.net.cost, setup.net.space.parse(probe))
            for match, length in (("exposure", max(1, round(share * steps))), ("epochs", steps)):
                arm = f"alone-{match}"
                recipe = cycle_recipe(arm, (probe,), length, setup, hold="epoch")
                factors = {"match": match, "probe": number, "share": share}
                runs.append(planned_run(arm, seed, recipe, model, part=f"-p{number}", factors=factors, probes=(probe,)))
    arms = [
        *(
            Arm(name=f"supernet-{name}", about=f"The probes inside a supernet, trained by {by}")
            for name, by in SUPERNETS.items()
        ),
        Arm(name="alone-exposure", about="Each probe alone, for the exposure that its weights have in the supernets"),
        Arm(name="alone-epochs", about="Each probe alone, for as many epochs as the supernets"),
    ]
    return Built(arms=arms, runs=runs, evaluate={"per_bucket": 0, "probes": probes, **buckets})


def _conclude(study: RecordedStudy, results: Sequence[StudyResult], times: Sequence[FinishedRun]) -> Conclusion:
    """Is a subnet better off trained alone than inside the supernet? And does the supernet rank subnets correctly?

    A subnet that is worse off inside may have been harmed there or trained less: this study alone cannot tell.
    """
    lines = probe_lines(study, results)
    supernet = where(lines, match=INSIDE)
    alone = [line for line in lines if line.factors["match"] != INSIDE]
    matches = sorted({str(line.factors["match"]) for line in alone}, key=lambda m: (m != "exposure", m))
    compared, gaps, ranks = [], [], []
    strategies = dict.fromkeys(line.factors.get("strategy") for line in supernet)  # earlier versions named none
    for strategy, match in product(strategies, matches):
        own = where(alone, match=match)
        inside = supernet if strategy is None else where(supernet, strategy=strategy)
        place = "inside the supernet" if strategy is None else f"inside the supernet of {strategy}"
        found = compare_lines(own, inside, (f"alone at equal {match}", place))
        if found is None:
            continue
        compared.append(found)
        label = match if strategy is None else f"{match}, {strategy}"
        gaps += _gap_rows(label, own, inside)
        ranks += _ranks(label, own, inside)
    if not compared:
        return undecided(study, "no seed has a subnet both alone and inside the supernet")
    comparisons = [replace(found, sentence=_says(found)) for found in corrected(compared)]
    return Conclusion(
        study=study.name,
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


def _says(found: SeedComparison) -> str:
    match, place = found.names[0].removeprefix("alone "), found.names[1]
    return says(
        found,
        better=f"{match} a subnet trained alone is {{}} better than {place}",
        worse=f"{match} a subnet trained alone is {{}} worse than {place}",
        equivalent=f"{match} a subnet is as good alone as {place}, within {found.margin:g} points",
        cannot_tell=f"cannot tell whether {match} a subnet is worse or better off {place}",
    )


def _gap_rows(match: str, alone: Sequence[StudyResult], inside: Sequence[StudyResult]) -> list[Row]:
    return [
        {
            "match": match,
            "seed": gap.seed,
            "probe": gap.arch,
            "macs": gap.macs,
            "alone": gap.alone,
            "inside": gap.inside,
            "gap": gap.points,
        }
        for gap in stand_alone_gaps(alone, inside)
    ]


def _gap_by_probe(gaps: Sequence[Row]) -> list[Row]:
    rows = []
    for match, probe, macs in dict.fromkeys((row["match"], row["probe"], row["macs"]) for row in gaps):
        own = [[row["gap"]] for row in gaps if (row["match"], row["probe"]) == (match, probe)]
        interval = over_seeds(own)
        row = {"match": match, "probe": probe, "macs": macs, "gap": interval.estimate, **interval_columns(interval)}
        rows.append(row | {"seeds": len(own)})
    return rows


def _ranks(match: str, alone: Sequence[StudyResult], inside: Sequence[StudyResult]) -> list[Row]:
    """Tau-b between supernet and stand-alone top-1 beside its ceiling; in buckets where two probes share one."""
    own, within = by_seed(alone), by_seed(inside)
    seeds = sorted(set(own) & set(within))
    probes = sorted(set.intersection(*(set(own[s]) & set(within[s]) for s in seeds))) if seeds else []
    if len(probes) < 2:
        return []
    bucket_of = {line.arch: line.bucket for line in inside}
    inner: list[float | None] = [bucket_of[probe] for probe in probes]
    shared = any(inner.count(bucket) > 1 for bucket in inner if bucket is not None)
    buckets: list[float | None] = inner if shared else [0.0] * len(probes)
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
    sizes = [buckets.count(bucket) for bucket in set(buckets) if bucket is not None]
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


SOLO = Design(
    name="solo",
    about="Probes inside a supernet against the same probes trained alone, at equal exposure and at equal epochs.",
    question="Does a subnet lose or gain from sharing its weights, against being trained alone?",
    build=_build,
    conclude=_conclude,
    own_buckets=True,
)
