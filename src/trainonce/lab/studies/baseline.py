"""The study `baseline`: does random subnet sampling beat Progressive Shrinking?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainonce.lab.statistics import corrected
from trainonce.lab.studies.comparing_arms import arms_of, by_bucket, compare_arms, medians, seconds
from trainonce.lab.studies.conclusion import (
    CANNOT_TELL,
    HOLM_NOTE,
    Conclusion,
    needed_notes,
    population_lines,
    seeds_note,
    sentence_of,
    undecided,
)
from trainonce.lab.studies.design import Built, Design, at_epochs, planned_run
from trainonce.lab.studies.results import Factors, FinishedRun, RecordedStudy, StudyResult
from trainonce.lab.studies.study import Arm, StudySetup
from trainonce.lab.studies.tuning import TUNED
from trainonce.recipes import RECIPES, Recipe

EQUAL_SECONDS = (0.95, 1.05)
"""Mean ratios of training seconds that count as equal."""
PRIMARY = ("rss", "ps")
"""The comparison that `baseline` is made for."""
AT_PASSES = "ps@rss-passes"
PUBLISHED = {"rss": "rss-published", "ps": "ps-published"}
"""The arms at published rates, which there are where the arm itself has another."""
RIVALS = {
    "rss-short": ("rss",),
    "stratified": ("rss",),
    "ps": ("rss",),
    AT_PASSES: ("rss",),
    "ps-ofa": ("rss",),
    "ps-released": ("rss",),
    PUBLISHED["rss"]: ("rss",),
    PUBLISHED["ps"]: (PUBLISHED["rss"], "rss"),
}
"""What each arm is compared with: the first of these that is there."""
AS_LONG = "rss@ps-seconds"
"""An arm of earlier versions, which trained for as long as `ps` took and is compared with it."""


@dataclass(frozen=True)
class _Trained:
    """An arm with the recipe that it trains."""

    name: str
    about: str
    recipe: Recipe
    match: str
    """What it has equally with `rss`: the factor `match`."""
    rate: float = 1.0
    """Its learning rates, as a multiple of the recipe's."""


def _held_stratified() -> Recipe:
    """RSS but for its draws, which are uniform in MACs: it removes selection bias and nothing else."""
    rss = RECIPES["rss"]
    phase = rss.phases[0].model_copy(update={"subnets": ("stratified",)})
    return rss.model_copy(update={"name": "stratified-held", "about": _held_stratified.__doc__, "phases": (phase,)})


def _trained(setup: StudySetup) -> Iterator[_Trained]:
    rss, short, ps, ofa, released = (RECIPES[name] for name in ("rss", "rss-short", "ps", "ps-ofa", "ps-released"))
    at_passes = ps.scaled(rss.passes / ps.passes)
    of_rss, of_ps, of_ofa = (setup.rates.get(name, 1.0) for name in TUNED)
    shrinking = "Progressive Shrinking, repaired, at the epochs of rss, as in the paper"
    yield _Trained("rss", "Random Subnet Sampling", rss, "epochs", of_rss)
    yield _Trained("rss-short", "Random Subnet Sampling in 180 of 590 epochs", short, "own", of_rss)
    uniform = "Random Subnet Sampling with draws uniform in MACs"
    yield _Trained("stratified", uniform, _held_stratified(), "epochs", of_rss)
    yield _Trained("ps", shrinking, ps, "epochs", of_ps)
    yield _Trained(AT_PASSES, "The same at the subnet passes of rss", at_passes, "passes", of_ps)
    yield _Trained("ps-ofa", "Progressive Shrinking as OFA trains it, at the epochs of rss", ofa, "epochs", of_ofa)
    yield _Trained("ps-released", "Progressive Shrinking as released with arXiv 2204.09210", released, "epochs")
    for of, about, recipe, rate in (("rss", "Random Subnet Sampling", rss, of_rss), ("ps", shrinking, ps, of_ps)):
        if rate != 1.0:
            about += "; at the published learning rate"
            yield _Trained(PUBLISHED[of], about, recipe, "epochs, published rate")


def _build(setup: StudySetup) -> Built:
    arms = list(_trained(setup))
    model = setup.model()
    runs = []
    for arm in arms:
        factors: Factors = {"strategy": arm.recipe.name, "match": arm.match, "rate": arm.rate}
        at_rate = at_epochs(setup, arm.recipe.at_rate(arm.rate))
        runs += [planned_run(arm.name, seed, at_rate, model, factors=factors) for seed in setup.seeds]
    return Built(arms=[Arm(name=arm.name, about=arm.about) for arm in arms], runs=runs, evaluate={})


def _conclude(study: RecordedStudy, results: Sequence[StudyResult], times: Sequence[FinishedRun]) -> Conclusion:
    """Is RSS better than Progressive Shrinking, at equal epochs (the paper's), passes or seconds, and as released?

    The first is what the study is made for and is tested by itself; all other comparisons are corrected together.
    """
    lines = population_lines(study, results)
    arms = arms_of(study, lines)
    match = {line.arm: str(line.factors["match"]) for line in lines}
    pairs = pairs_of(arms)
    compared = compare_arms(lines, pairs)
    first = [comparison for comparison in compared if comparison.names == PRIMARY]
    comparisons = first + corrected([comparison for comparison in compared if comparison.names != PRIMARY])
    found = {comparison.names: comparison for comparison in comparisons}
    main = found.get(PRIMARY)
    as_long = [comparison for comparison in comparisons if AS_LONG in comparison.names]
    others = [found.get(names) for names in (("rss", "ps-ofa"), ("rss", "stratified"), *_preregistered(arms))]
    equal = f"at equal {match.get('ps', 'epochs')}"
    at_passes = found.get(("rss", AT_PASSES))
    if main is None and not comparisons:
        return undecided(study, "no seed has results of both rss and ps")
    sentence = sentence_of(
        f"{equal} {main.sentence}" if main else f"cannot tell whether rss or ps is better {equal}",
        f"at equal passes {at_passes.sentence}" if at_passes else "",
        *(f"{_at_seconds(comparison.names, times)} {comparison.sentence}" for comparison in as_long),
        *(comparison.sentence for comparison in others if comparison),
    )
    return Conclusion(
        study=study.name,
        sentence=sentence,
        verdict=main.verdict if main else CANNOT_TELL,
        comparisons=tuple(comparisons),
        tables={
            "medians": medians(lines, arms),
            "buckets": by_bucket(lines, pairs),
            "seconds": seconds(arms, times, reference="ps"),
        },
        notes=(
            seeds_note((main or comparisons[0]).seeds),
            *needed_notes(main or comparisons[0]),
            HOLM_NOTE,
            *(f"{a} and {b} did not train for equal passes." for a, b in _unequal_passes(times, found)),
            *_time_notes(times),
        ),
    )


def pairs_of(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Which of these arms to compare: each with its rival, and those of `_preregistered`."""
    pairs = []
    for arm in arms:
        if arm == AS_LONG:
            pairs += [(arm, "ps")] if "ps" in arms else []
        else:
            pairs += [(rival, arm) for rival in RIVALS.get(arm, ()) if rival in arms][:1]
    return list(dict.fromkeys([*pairs, *_preregistered(arms)]))


def _preregistered(arms: Sequence[str]) -> list[tuple[str, str]]:
    """What docs/preregistration.md asks beyond each arm against rss, of the arms that there are.

    rss and ps at their published rates, which are the tuned ones where there are no others; the released code against
    ps at its published rates; and removing selection bias against mitigation.
    """
    rss, ps = (PUBLISHED[arm] if PUBLISHED[arm] in arms else arm for arm in PRIMARY)
    pairs = [(rss, ps), ("ps-released", ps), ("stratified", AT_PASSES)]
    return [pair for pair in pairs if set(pair) <= set(arms) and pair != PRIMARY]


def _unequal_passes(times: Sequence[FinishedRun], pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of arms whose runs made subnet passes that differ by more than a fiftieth."""
    passes = {line.arm: line.passes for line in times}
    known = [(a, b) for a, b in pairs if a in passes and b in passes]
    return [(a, b) for a, b in known if not math.isclose(passes[a], passes[b], rel_tol=0.02)]


def _at_seconds(names: tuple[str, str], times: Sequence[FinishedRun]) -> str:
    """At which ratio of training seconds two arms are compared: the mean over the seeds that both have times of.

    Recipes are made equally long by a pace measured beforehand; whether they were is only known from the times.
    """
    ratio = _seconds_ratio(names, times)
    if ratio is None:
        return "at seconds planned to be equal"
    low, high = EQUAL_SECONDS
    return "at equal seconds" if low <= ratio <= high else f"at {ratio:.2f} times the seconds"


def _seconds_ratio(names: tuple[str, str], times: Sequence[FinishedRun]) -> float | None:
    first, second = ({x.seed: x.train_seconds for x in times if x.arm == arm} for arm in names)
    ratios = [first[seed] / second[seed] for seed in first if seed in second]
    return float(np.mean(ratios)) if ratios else None


def _time_notes(times: Sequence[FinishedRun]) -> tuple[str, ...]:
    ways = {(line.threads, line.beside) for line in times}
    if any(beside is None for _, beside in ways):
        return ("How many runs shared a machine is not known for all: their seconds may not compare.",)
    if len(ways) < 2:
        return ()
    return ("Runs were timed with unequal numbers of threads or of runs beside them: their seconds do not compare.",)


BASELINE = Design(
    name="baseline",
    about="The paper's strategies at equal epochs, as in the paper: random subnet sampling, also in 180 epochs and "
    "without selection bias; progressive shrinking repaired, as OFA trains it and as released; and repaired at "
    "equal subnet passes. Seeds, images, network and evaluated subnets are the same.",
    question="Does random subnet sampling beat progressive shrinking?",
    build=_build,
    conclude=_conclude,
    tunable=TUNED,
)
