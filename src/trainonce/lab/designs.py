"""The five built-in studies. Each is planned on a `Ground` and gives a `Study` with every run complete."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from trainonce.errors import UserError
from trainonce.lab.share import expected_share
from trainonce.lab.study import Arm, Factors, Ground, Study, StudyRun, in_seed_order
from trainonce.recipes import ONLY_LARGEST, RECIPES, RSS_EPOCHS, Phase, Recipe, Slot
from trainonce.settings import Settings
from trainonce.space import Architecture, derived_rng

DOSES: tuple[int | str, ...] = (1, 2, 4, 16, 64, "all")
DOSE_PROBES = 2
SOLO_PROBES, SOLO_BUCKETS = 8, 4
"""Two probes share a bucket, so that ranks can be compared where size does not decide."""
SHRINKING: tuple[tuple[str, float, dict[str, int]], ...] = (
    ("kernel", 120, {"depth": 1, "expand_ratio": 1}),
    ("depth 1", 25, {"depth": 2, "expand_ratio": 1}),
    ("depth 2", 120, {"expand_ratio": 1}),
    ("expand 1", 25, {"expand_ratio": 2}),
    ("expand 2", 120, {}),
)
"""Progressive Shrinking's order: a phase's name, its epochs, and what it keeps."""
LARGEST_EPOCHS = 180.0
NO_ORDER: tuple[tuple[str, float, dict[str, int]], ...] = (("all", RSS_EPOCHS - LARGEST_EPOCHS, {}),)
"""As long as PS's phases after the largest, in one."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """A built-in study."""

    name: str
    about: str
    question: str
    build: Callable[[Ground], "Built"]
    own_buckets: bool = False
    """Whether its probes are drawn from buckets of its own, which cannot be others."""

    def study(self, ground: Ground) -> Study:
        """The study on this ground. Raises `UserError` where the scale leaves nothing to train."""
        built = self.build(ground)
        return Study(
            name=self.name,
            design=self.name,
            about=self.about,
            question=self.question,
            scale=ground.scale,
            seeds=ground.seeds,
            arms=tuple(built.arms),
            runs=in_seed_order(built.runs),
            evaluate=ground.plan(**built.evaluate),
        )


@dataclass(frozen=True, kw_only=True)
class Built:
    """What is particular to a design: its arms and runs, and how it departs from the usual evaluation."""

    arms: Sequence[Arm]
    runs: Sequence[StudyRun]
    evaluate: dict[str, Any]


def _run(
    arm: str,
    seed: int,
    recipe: Recipe,
    model: Settings,
    *,
    part: str = "",
    factors: Factors,
    probes: tuple[str, ...] | None = None,
) -> StudyRun:
    return StudyRun(
        name=f"{arm}{part}-seed{seed}",
        arm=arm,
        seed=seed,
        factors=factors,
        recipe=recipe,
        model=model.model_dump(mode="json"),
        probes=probes,
    )


def _at_passes(ground: Ground, name: str) -> Recipe:
    """A recipe at RSS's number of subnet passes over the images, times the scale."""
    recipe = RECIPES[name]
    return ground.at_batch_size(recipe.scaled(ground.scale * RSS_EPOCHS / recipe.passes))


def _at_passes_of(ground: Ground, other: Recipe, name: str) -> Recipe:
    """A recipe of one phase and one subnet a step at exactly the subnet passes that another comes to in whole steps."""
    recipe = ground.at_batch_size(RECIPES[name])
    return recipe.scaled(ground.passes(other) / ground.steps_per_epoch(recipe) / recipe.epochs)


def _in_steps(ground: Ground, recipe: Recipe, epochs: float) -> int:
    """A length at the study's scale, in whole steps."""
    return max(1, round(epochs * ground.scale * ground.steps_per_epoch(recipe)))


# baseline


def _baseline(ground: Ground) -> Built:
    ps = _at_passes(ground, "ps")
    rss = _at_passes_of(ground, ps, "rss")
    seconds = ps.epochs * ground.pace(ps)
    timed = rss.scaled(seconds / (rss.epochs * ground.pace(rss)))
    arms: list[tuple[str, str, Recipe, str]] = [
        (
            "ps-released",
            "Progressive Shrinking as released with arXiv 2204.09210",
            _at_passes(ground, "ps-released"),
            "passes",
        ),
        ("ps", "Progressive Shrinking, faithful to OFA", ps, "passes"),
        ("rss", "Random Subnet Sampling, at the subnet passes of both", rss, "passes"),
        ("rss-short", "Random Subnet Sampling in 180 of 590 epochs", rss.scaled(180 / RSS_EPOCHS), "own"),
        ("rss@ps-seconds", "Random Subnet Sampling for as many seconds as ps takes", timed, "seconds"),
    ]
    model = ground.model()
    runs = [
        _run(name, seed, recipe, model, factors={"strategy": recipe.name, "match": match})
        for seed, (name, _, recipe, match) in product(ground.seeds, arms)
    ]
    return Built(arms=[Arm(name=name, about=about) for name, about, _, _ in arms], runs=runs, evaluate={})


# dose


def _cycle(name: str, cycle: tuple[str, ...], steps: int, ground: Ground, **fields: Any) -> Recipe:
    """One phase of so many steps that goes round `cycle`, on RSS's settings."""
    base = ground.at_batch_size(RECIPES["spos"])
    phase = base.phases[0].model_copy(
        update={
            "name": name,
            "epochs": steps / ground.steps_per_epoch(base),
            "subnets": ("cycle",),
            "cycle": cycle,
            **fields,
        }
    )
    return base.model_copy(update={"name": name, "about": f"{name}, in turn.", "phases": (phase,)})


def dose_pool(ground: Ground, probe: str, count: int, seed: int) -> tuple[str, ...]:
    """`count` distinct random subnets other than the probe; the first n of a larger pool are the pool of n."""
    rng = derived_rng(seed, "dose", probe)
    space = ground.net.space
    pool: dict[Architecture, None] = {}
    while len(pool) < count:
        arch = space.sample(rng)
        if str(arch) != probe:
            pool[arch] = None
    return tuple(map(str, pool))


def dose_cycle(ground: Ground, probe: str, dose: int | str, seed: int) -> tuple[str, ...]:
    """Whose turn it is: the probe's in even turns, another's in odd ones; with a dose of 1 the probe's alone."""
    if dose == 1:
        return (probe,)
    others = ("uniform",) if dose == "all" else dose_pool(ground, probe, int(dose) - 1, seed)
    return tuple(entry for other in others for entry in (probe, other))


def _dose(ground: Ground) -> Built:
    base = ground.at_batch_size(RECIPES["spos"])
    turns = _in_steps(ground, base, RSS_EPOCHS)
    probes, buckets = ground.probes(DOSE_PROBES, 1)
    arms = [Arm(name=f"k-{dose}", about=_dose_about(dose)) for dose in DOSES]
    runs = []
    for seed, (number, probe), (arm, dose) in product(ground.seeds, enumerate(probes), zip(arms, DOSES, strict=True)):
        cycle = dose_cycle(ground, probe, dose, seed)
        recipe = _cycle(arm.name, cycle, turns if dose == 1 else 2 * turns, ground)
        factors: Factors = {"dose": dose, "probe": number}
        runs.append(_run(arm.name, seed, recipe, ground.model(), part=f"-p{number}", factors=factors, probes=(probe,)))
    return Built(arms=arms, runs=runs, evaluate={"per_bucket": 0, "probes": probes, **buckets})


def _dose_about(dose: int | str) -> str:
    if dose == 1:
        return "The probe alone"
    return f"The probe and {'all subnets' if dose == 'all' else f'{int(dose) - 1} other'}, in turn"


# solo


def _solo(ground: Ground) -> Built:
    supernet = ground.at_batch_size(RECIPES["spos"])
    steps = _in_steps(ground, supernet, RSS_EPOCHS)
    supernet = supernet.scaled(steps / ground.steps_per_epoch(supernet) / supernet.epochs)
    probes, buckets = ground.probes(SOLO_BUCKETS, SOLO_PROBES // SOLO_BUCKETS)
    model = ground.model()
    runs = []
    for seed in ground.seeds:
        runs.append(_run("supernet", seed, supernet, model, factors={"match": "supernet"}))
        for number, probe in enumerate(probes):
            share = expected_share(ground.net.cost, ground.net.space.parse(probe))
            for match, length in (("exposure", max(1, round(share * steps))), ("epochs", steps)):
                arm = f"alone-{match}"
                recipe = _cycle(arm, (probe,), length, ground, hold="epoch")
                factors: Factors = {"match": match, "probe": number, "share": share}
                runs.append(_run(arm, seed, recipe, model, part=f"-p{number}", factors=factors, probes=(probe,)))
    arms = [
        Arm(name="supernet", about="The probes inside a supernet, trained by one uniform subnet a step"),
        Arm(name="alone-exposure", about="Each probe alone, for the exposure that its weights have in the supernet"),
        Arm(name="alone-epochs", about="Each probe alone, for as many epochs as the supernet"),
    ]
    return Built(arms=arms, runs=runs, evaluate={"per_bucket": 0, "probes": probes, **buckets})


# factorial


def _factorial(ground: Ground) -> Built:
    levels = {
        "order": ("shrinking", "none"),
        "distillation": ("teacher", "none"),
        "sampler": ("uniform", "stratified"),
    }
    arms: list[Arm] = []
    recipes: dict[str, Recipe] = {}
    factors_of: dict[str, Factors] = {}
    for order, distillation, sampler in product(*levels.values()):
        levels_on = [level for level in (order, distillation, sampler) if level not in ("none", "uniform")]
        name = "+".join(levels_on) or "none"
        about = (
            f"{'Shrinking order' if order == 'shrinking' else 'No order'}, "
            f"{'with' if distillation == 'teacher' else 'without'} a teacher, {sampler} sampler"
        )
        arms.append(Arm(name=name, about=about))
        recipes[name] = factorial_recipe(ground, order=order, distillation=distillation, sampler=sampler)
        factors_of[name] = {"order": order, "distillation": distillation, "sampler": sampler}
    model = ground.model()
    runs = [
        _run(arm.name, seed, recipes[arm.name], model, factors=factors_of[arm.name])
        for seed, arm in product(ground.seeds, arms)
    ]
    return Built(arms=arms, runs=runs, evaluate={})


def factorial_recipe(ground: Ground, *, order: str, distillation: str, sampler: str) -> Recipe:
    """One cell: the largest first, then one subnet a step, all on one cosine. Steps are the same in every cell.

    Raises `UserError` where the scale is so small that a phase would have no step.
    """
    base = ground.at_batch_size(RECIPES["spos"])
    later = SHRINKING if order == "shrinking" else NO_ORDER
    lengths = [LARGEST_EPOCHS, *(epochs for _, epochs, _ in later)]
    per_epoch = ground.steps_per_epoch(base)
    ends = [round(math.fsum(lengths[: i + 1]) * ground.scale * per_epoch) for i in range(len(lengths))]
    steps = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if min(steps) < 1:
        raise UserError(f"at a scale of {ground.scale:g} a phase of the factorial has no step: take a larger --scale")
    slot: Slot = "stratified" if sampler == "stratified" else "uniform"
    common: dict[str, Any] = {"lr": base.phases[0].lr, "cosine": "recipe"}
    phases = [Phase(name="largest", epochs=steps[0] / per_epoch, keep_largest=ONLY_LARGEST, **common)]
    phases += [
        Phase(
            name=name,
            epochs=length / per_epoch,
            keep_largest=kept,
            subnets=(slot,),
            target="labels+teacher" if distillation == "teacher" else "labels",
            sort_channels=i == 0,
            **common,
        )
        for i, ((name, _, kept), length) in enumerate(zip(later, steps[1:], strict=True))
    ]
    about = f"Order: {order}; distillation: {distillation}; sampler: {sampler}."
    return base.model_copy(update={"name": "factorial", "about": about, "phases": tuple(phases)})


# geometry


def _geometry(ground: Ground) -> Built:
    arms, runs = [], []
    for geometry, strategy in product(("paper", "cifar"), ("ps", "rss")):
        name = f"{strategy}-{geometry}"
        arms.append(Arm(name=name, about=f"{strategy} in the {geometry} geometry"))
        ps = _at_passes(ground, "ps")
        recipe = ps if strategy == "ps" else _at_passes_of(ground, ps, "rss")
        factors: Factors = {"geometry": geometry, "strategy": strategy}
        runs += [_run(name, seed, recipe, ground.model(geometry), factors=factors) for seed in ground.seeds]
    return Built(arms=arms, runs=runs, evaluate={"buckets_m": ()})


_DESIGNS = (
    Design(
        name="baseline",
        about="The paper's two strategies, the one as released and as published, at equal subnet passes (and RSS also "
        "short, and at the seconds of ps). Seeds, images, network and evaluated subnets are the same.",
        question="Is random subnet sampling as good as progressive shrinking, and was the paper's baseline whole?",
        build=_baseline,
    ),
    Design(
        name="dose",
        about="A probe shares its weights with ever more other subnets. Its own turns, and their learning rates, are "
        "the same in every run.",
        question="Does sharing weights with more subnets cost a subnet accuracy?",
        build=_dose,
        own_buckets=True,
    ),
    Design(
        name="solo",
        about="Probes inside a supernet against the same probes trained alone, at equal exposure and at equal epochs.",
        question="Does a subnet lose or gain from sharing its weights, against being trained alone?",
        build=_solo,
        own_buckets=True,
    ),
    Design(
        name="factorial",
        about="Shrinking order, distillation and MACs-stratified sampling, each with and without, in all eight "
        "combinations at equal passes and equal learning-rate sum.",
        question="Does mitigating interference matter more than removing selection bias?",
        build=_factorial,
    ),
    Design(
        name="geometry",
        about="Progressive shrinking and random sampling at equal passes, in the paper's geometry, whose last maps are "
        "tiny, and in the CIFAR geometry.",
        question="Does the answer depend on the network's geometry?",
        build=_geometry,
    ),
)

STUDIES: dict[str, Design] = {design.name: design for design in _DESIGNS}
"""Every built-in study by name."""
