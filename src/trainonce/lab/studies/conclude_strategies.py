"""What the studies of whole strategies force: `baseline`, `geometry`, and any study that is not ours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from trainonce.lab.statistics import Comparison, compare, corrected, over_seeds
from trainonce.lab.studies.conclusion import (
    CANNOT_TELL,
    HOLM_NOTE,
    MARGIN,
    BySeed,
    Conclusion,
    Line,
    Row,
    Study,
    by_seed,
    compare_lines,
    flat,
    interval_columns,
    needed_notes,
    population_lines,
    probe_lines,
    says,
    seeds_note,
    sentence_of,
    undecided,
    where,
)

EQUAL_SECONDS = (0.95, 1.05)
"""Mean ratios of training seconds that count as equal."""
PRIMARY = ("rss", "ps")
"""The comparison that `baseline` is made for."""


def conclude_arms(study: Study, results: Sequence[Line], times: Sequence[Line]) -> Conclusion:
    """Every arm against the first that has results: for studies that are not ours."""
    lines = population_lines(study, results) or probe_lines(study, results)
    arms = _arms(study, lines)
    pairs = [(arm, arms[0]) for arm in arms[1:]]
    comparisons = corrected(_compare_arms(lines, pairs))
    if not comparisons:
        return undecided(study, "no two arms have results for the same seed")
    verdicts = {found.verdict for found in comparisons}
    return Conclusion(
        study=study["name"],
        sentence=sentence_of(*(found.sentence for found in comparisons)),
        verdict=verdicts.pop() if len(verdicts) == 1 else "mixed",
        comparisons=tuple(comparisons),
        tables={
            "medians": _medians(lines, arms),
            "buckets": _by_bucket(lines, pairs),
            "seconds": _seconds(arms, times),
        },
        notes=(seeds_note(comparisons[0].seeds), *needed_notes(comparisons[0]), HOLM_NOTE),
    )


def conclude_baseline(study: Study, results: Sequence[Line], times: Sequence[Line]) -> Conclusion:
    """Is RSS better than Progressive Shrinking, at equal epochs (the paper's), passes or seconds, and as released?

    The first is what the study is made for and is tested by itself; all other comparisons are corrected together.
    """
    lines = population_lines(study, results)
    arms = _arms(study, lines)
    match = {line["arm"]: str(line["factors"].get("match", "own")) for line in lines}
    pairs = baseline_pairs({arm: match[arm] for arm in arms})
    compared = _compare_arms(lines, pairs)
    first = [comparison for comparison in compared if comparison.names == PRIMARY]
    comparisons = first + corrected([comparison for comparison in compared if comparison.names != PRIMARY])
    found = {comparison.names: comparison for comparison in comparisons}
    main = found.get(PRIMARY)
    seconds = [c for c in comparisons if "seconds" in (match[c.names[0]], match[c.names[1]])]
    others = [found.get(names) for names in (("rss", "ps-ofa"), ("rss", "stratified"), *_preregistered(match))]
    equal = f"at equal {match.get('ps', 'epochs')}"
    at_passes = found.get(("rss", "ps@rss-passes"))
    if main is None and not comparisons:
        return undecided(study, "no seed has results of both rss and ps")
    sentence = sentence_of(
        f"{equal} {main.sentence}" if main else f"cannot tell whether rss or ps is better {equal}",
        f"at equal passes {at_passes.sentence}" if at_passes else "",
        *(f"{_at_seconds(comparison.names, times)} {comparison.sentence}" for comparison in seconds),
        *(comparison.sentence for comparison in others if comparison),
    )
    return Conclusion(
        study=study["name"],
        sentence=sentence,
        verdict=main.verdict if main else CANNOT_TELL,
        comparisons=tuple(comparisons),
        tables={
            "medians": _medians(lines, arms),
            "buckets": _by_bucket(lines, pairs),
            "seconds": _seconds(arms, times),
        },
        notes=(
            seeds_note((main or comparisons[0]).seeds),
            *needed_notes(main or comparisons[0]),
            HOLM_NOTE,
            *(f"{a} and {b} did not train for equal passes." for a, b in _unequal_passes(times, found)),
            *_time_notes(times),
        ),
    )


def baseline_pairs(match: Mapping[str, str]) -> list[tuple[str, str]]:
    """Which arms to compare: each with the rss of its match, or else with plain `rss`.

    An arm "rss@ps-seconds", which trained for as long as ps took, is compared with `ps`; `ps-published`, at its
    published learning rates, with `rss-published`. And those of `_preregistered`.
    """
    pairs = []
    for arm, kind in match.items():
        base, _, other = arm.partition("@")
        if base == "rss":
            pairs += [(arm, other.removesuffix("-seconds"))] if other.removesuffix("-seconds") in match else []
            continue
        alike = ("rss", "rss-published") if arm == "ps-published" else ("rss",)
        rivals = [rss for rss in match if rss.partition("@")[0] in alike and match[rss] == kind] or ["rss"]
        pairs += [(rivals[0], arm)] if rivals[0] in match else []
    return list(dict.fromkeys([*pairs, *_preregistered(match)]))


def _preregistered(match: Mapping[str, str]) -> list[tuple[str, str]]:
    """What docs/preregistration.md asks beyond each arm against rss, of the arms that there are.

    rss and ps at their published rates, which are the tuned ones where there are no others; the released code against
    ps at its published rates; and removing selection bias against mitigation.
    """
    rss, ps = (f"{arm}-published" if f"{arm}-published" in match else arm for arm in PRIMARY)
    pairs = [(rss, ps), ("ps-released", ps), ("stratified", "ps@rss-passes")]
    return [pair for pair in pairs if set(pair) <= set(match) and pair != PRIMARY]


def _unequal_passes(times: Sequence[Line], pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of arms whose runs made subnet passes that differ by more than a fiftieth."""
    passes = {line["arm"]: line["passes"] for line in times}
    known = [(a, b) for a, b in pairs if a in passes and b in passes]
    return [(a, b) for a, b in known if not math.isclose(passes[a], passes[b], rel_tol=0.02)]


def conclude_tuning(study: Study, results: Sequence[Line], times: Sequence[Line]) -> Conclusion:
    """Which learning rate is best for each strategy: the highest mean over seeds of a seed's mean.

    A choice, not a test: there is no p value. A best rate at the end of the grid is said to be there, and where rates
    have no results, not yet or since their loss was not finite, of how many it is the best.
    """
    lines = population_lines(study, results)
    rows: list[Row] = []
    for strategy, rate in dict.fromkeys((x["factors"]["strategy"], x["factors"]["rate"]) for x in lines):
        groups = [list(found.values()) for found in by_seed(where(lines, strategy=strategy, rate=rate)).values()]
        mean = float(np.mean([np.mean(group) for group in groups]))
        rows.append({"strategy": strategy, "rate": rate, "top1": mean, "seeds": len(groups)})
    if not rows:
        return undecided(study, "no run has results yet")
    planned = [arm["name"].rpartition("@")[0] for arm in study["arms"]]
    clauses, best = [], []
    for strategy in dict.fromkeys(planned):
        own = [row for row in rows if row["strategy"] == strategy]
        if not own:
            clauses.append(f"{strategy} has no results")
            continue
        top = max(own, key=lambda row: row["top1"])
        of = f", of {len(own)} of {planned.count(strategy)} rates" if len(own) < planned.count(strategy) else ""
        rates = [row["rate"] for row in own]
        edge = ", the largest tried" if top["rate"] == max(rates) else ""
        edge = ", the smallest tried" if top["rate"] == min(rates) else edge
        clauses.append(f"{strategy} is best at a rate of {top['rate']:g}{of}{edge} ({top['top1']:.1f})")
        best.append(f"{strategy} {top['rate']:g}{of}")
    return Conclusion(
        study=study["name"],
        sentence=sentence_of(*clauses),
        verdict=", ".join(best),
        tables={"rates": rows, "seconds": _seconds(_arms(study, lines), times)},
        notes=("Rates are chosen by the mean over subnets and seeds; nothing is tested.",),
    )


def _at_seconds(names: tuple[str, str], times: Sequence[Line]) -> str:
    """At which ratio of training seconds two arms are compared: the mean over the seeds that both have times of.

    Recipes are made equally long by a pace measured beforehand; whether they were is only known from the times.
    """
    ratio = _seconds_ratio(names, times)
    if ratio is None:
        return "at seconds planned to be equal"
    low, high = EQUAL_SECONDS
    return "at equal seconds" if low <= ratio <= high else f"at {ratio:.2f} times the seconds"


def _seconds_ratio(names: tuple[str, str], times: Sequence[Line]) -> float | None:
    first, second = ({x["seed"]: x["train_seconds"] for x in times if x["arm"] == arm} for arm in names)
    ratios = [first[seed] / second[seed] for seed in first if seed in second]
    return float(np.mean(ratios)) if ratios else None


def _arms(study: Study, lines: Sequence[Line]) -> list[str]:
    there = dict.fromkeys(line["arm"] for line in lines)
    drawn = [arm["name"] for arm in study["arms"] if arm["name"] in there]
    return drawn + [arm for arm in there if arm not in drawn]


def _of(lines: Sequence[Line], arm: str) -> list[Line]:
    return [line for line in lines if line["arm"] == arm]


def _compare_arms(lines: Sequence[Line], pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    found = (compare_lines(_of(lines, a), _of(lines, b), (a, b)) for a, b in pairs)
    return [comparison for comparison in found if comparison is not None]


def _buckets(lines: Sequence[Line]) -> list[float]:
    return sorted({line["bucket"] for line in lines if line["bucket"] is not None})


def _medians(lines: Sequence[Line], arms: Sequence[str]) -> list[Row]:
    """The median top-1 of each arm in each bucket: mean over seeds of a seed's median, with its interval."""
    rows = []
    for arm in arms:
        for bucket in _buckets(lines):
            values = by_seed(line for line in _of(lines, arm) if line["bucket"] == bucket)
            if values:
                groups = [list(found.values()) for _, found in sorted(values.items())]
                interval = over_seeds(groups, statistic=np.median)
                row = {"arm": arm, "bucket": bucket, "median": interval.estimate, **interval_columns(interval)}
                rows.append(row | {"seeds": len(groups), "subnets": sum(len(group) for group in groups)})
    return rows


def _by_bucket(lines: Sequence[Line], pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """Every pair in every bucket, all corrected together."""
    found = [
        (bucket, comparison)
        for bucket in _buckets(lines)
        for comparison in _compare_arms([line for line in lines if line["bucket"] == bucket], pairs)
    ]
    family = corrected([comparison for _, comparison in found])
    return [
        flat(comparison, a=comparison.names[0], b=comparison.names[1], bucket=bucket)
        for (bucket, _), comparison in zip(found, family, strict=True)
    ]


def _seconds(arms: Sequence[str], times: Sequence[Line]) -> list[Row]:
    """Training seconds of each arm, and by which factor it is faster than ps (else the first arm) at the same seed."""
    taken = {(line["arm"], line["seed"]): line for line in times}
    reference = "ps" if "ps" in arms else arms[0] if arms else ""
    rows = []
    for arm in arms:
        own = [line for (name, _), line in taken.items() if name == arm]
        if own:
            ratios = [
                taken[reference, line["seed"]]["train_seconds"] / line["train_seconds"]
                for line in own
                if (reference, line["seed"]) in taken
            ]
            rows.append(
                {
                    "arm": arm,
                    "runs": len(own),
                    "seconds": float(np.mean([line["train_seconds"] for line in own])),
                    "passes": float(np.mean([line["passes"] for line in own])),
                    "reference": reference,
                    "factor": float(np.exp(np.mean(np.log(ratios)))) if ratios else None,
                    "smallest_factor": min(ratios, default=None),
                    "largest_factor": max(ratios, default=None),
                }
            )
    return rows


def _time_notes(times: Sequence[Line]) -> tuple[str, ...]:
    ways = {(line["threads"], line["beside"]) for line in times}
    if any(beside is None for _, beside in ways):
        return ("How many runs shared a machine is not known for all: their seconds may not compare.",)
    if len(ways) < 2:
        return ()
    return ("Runs were timed with unequal numbers of threads or of runs beside them: their seconds do not compare.",)


def conclude_geometry(study: Study, results: Sequence[Line], times: Sequence[Line]) -> Conclusion:
    """Does what holds between RSS and PS in the paper's geometry hold in the CIFAR geometry?"""
    lines = population_lines(study, results)
    names = list(dict.fromkeys(str(line["factors"].get("geometry")) for line in lines))
    names.sort(key=lambda name: (name != "paper", name))
    compared: dict[str, Comparison] = {}
    changes: dict[str, dict[int, list[float]]] = {}
    for name in names:
        rss, ps = ([x for x in where(lines, geometry=name) if _strategy(x, names) == s] for s in ("rss", "ps"))
        comparison = compare_lines(rss, ps, (f"rss in the {name} geometry", f"ps in the {name} geometry"))
        if comparison:
            compared[name] = comparison
            changes[name] = _mean_differences(by_seed(rss), by_seed(ps))
    if not compared:
        return undecided(study, "no seed has results of both rss and ps in one geometry")
    difference = _change(changes)
    family = corrected([*compared.values(), *([difference] if difference else [])])
    found = {name: _geometry_said(one, name) for name, one in zip(compared, family, strict=False)}
    change = _change_said(family[-1]) if difference else None
    verdict = _geometry_verdict([comparison.verdict for comparison in found.values()], change)
    return Conclusion(
        study=study["name"],
        sentence=sentence_of(
            *(comparison.sentence for comparison in found.values()), change.sentence if change else ""
        ),
        verdict=verdict,
        comparisons=(*found.values(), *([change] if change else [])),
        tables={
            "geometries": [flat(comparison, geometry=name) for name, comparison in found.items()],
            "medians": _medians(lines, _arms(study, lines)),
            "seconds": _seconds(_arms(study, lines), times),
        },
        notes=(seeds_note(min(comparison.seeds for comparison in found.values())), HOLM_NOTE),
    )


def _strategy(line: Line, geometries: Sequence[str]) -> str:
    """The factor "strategy"; else the arm's name less the geometry's: "rss" of "rss-cifar" and of "cifar-rss"."""
    if "strategy" in line["factors"]:
        return str(line["factors"]["strategy"])
    arm = str(line["arm"])
    for geometry in geometries:
        for mark in "-@ ":
            arm = arm.removesuffix(f"{mark}{geometry}").removeprefix(f"{geometry}{mark}")
    return arm


def _mean_differences(a: BySeed, b: BySeed) -> dict[int, list[float]]:
    """One difference of means for each seed that both have: geometries share no subnets that could be paired."""
    return {s: [float(np.mean(list(a[s].values())) - np.mean(list(b[s].values())))] for s in sorted(set(a) & set(b))}


def _change(changes: Mapping[str, Mapping[int, Sequence[float]]]) -> Comparison | None:
    """How rss - ps differs between the first two geometries, second less first."""
    if len(changes) < 2:
        return None
    first, second = list(changes)[:2]
    seeds = sorted(set(changes[first]) & set(changes[second]))
    if not seeds:
        return None
    names = (f"rss - ps in the {second} geometry", f"rss - ps in the {first} geometry")
    return compare(*({s: changes[g][s] for s in seeds} for g in (second, first)), margin=MARGIN, names=names)


def _geometry_said(found: Comparison, name: str) -> Comparison:
    sentence = found.sentence.replace(f" in the {name} geometry", "")
    return replace(found, sentence=f"in the {name} geometry {sentence}")


def _change_said(found: Comparison) -> Comparison:
    which = found.names[0].removeprefix("rss - ps in ")
    text = says(
        found,
        better=f"{which} favours rss by {{}} more",
        worse=f"{which} favours rss by {{}} less",
        equivalent=f"the two differences are equal within {found.margin:g} points",
        cannot_tell="whether geometry changes the difference cannot be told",
    )
    return replace(found, sentence=text)


def _geometry_verdict(verdicts: Sequence[str], change: Comparison | None) -> str:
    """ "other order" needs opposite verdicts; one that is equivalent in one geometry alone differs in size at most."""
    found = set(verdicts)
    if change is None or CANNOT_TELL in found:
        return CANNOT_TELL
    if found >= {"better", "worse"}:
        return "other order"
    if len(found) == 1:
        return "same order"
    return "other size" if change.verdict in ("better", "worse") else CANNOT_TELL
