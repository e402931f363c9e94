"""The built-in studies. Each is planned on a `Ground` and gives a `Study` with every run complete."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from trainonce.errors import UserError
from trainonce.lab.studies.share import expected_share
from trainonce.lab.studies.study import Arm, Factors, Ground, Study, StudyRun, in_seed_order
from trainonce.recipes import ONLY_LARGEST, RECIPES, Phase, Recipe, Slot, timetable
from trainonce.settings import Settings
from trainonce.space import Architecture, derived_rng

DOSES: tuple[int | str, ...] = (1, 16, "all")
DOUBLE_TURNS = "k-1-double"
"""The arm of `dose` whose probe has the turns of the others too."""
DOSE_PROBES = 2
SOLO_PROBES, SOLO_BUCKETS = 4, 2
"""Two probes share a bucket, so that ranks can be compared where size does not decide."""
SOLO_SUPERNETS = ("rss", "spos")
TUNED = ("rss", "ps", "ps-ofa")
TUNING_RATES = (0.01, 0.03, 0.08)
"""Highest learning rates, for 64 images, that `tuning` tries with every recipe: the paper's, OFA's, and one between."""
FEWEST_HELD = 50
"""How many different draws a run must make, so that what is compared is the strategy and not a few subnets."""
SHRINKING: tuple[tuple[str, float, dict[str, int]], ...] = (
    ("kernel", 120, {"depth": 1, "expand_ratio": 1}),
    ("depth 1", 25, {"depth": 2, "expand_ratio": 1}),
    ("depth 2", 120, {"expand_ratio": 1}),
    ("expand 1", 25, {"expand_ratio": 2}),
    ("expand 2", 120, {}),
)
"""Progressive Shrinking's order: a phase's name, its epochs, and what it keeps."""
LARGEST_EPOCHS = 180.0
NO_ORDER: tuple[tuple[str, float, dict[str, int]], ...] = tuple((name, epochs, {}) for name, epochs, _ in SHRINKING)
"""The same phases on the whole space."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """A built-in study."""

    name: str
    about: str
    question: str
    build: Callable[[Ground], "Built"]
    own_buckets: bool = False
    """Whether its probes are drawn from buckets of its own, which cannot be others."""
    tunable: tuple[str, ...] = ()
    """The recipes that it takes tuned learning rates of."""

    def study(self, ground: Ground) -> Study:
        """The study on this ground. Raises `UserError` where the scale leaves nothing to train."""
        for name in ground.rates:
            if name not in self.tunable:
                takes = f"takes those of {', '.join(self.tunable)}" if self.tunable else "takes none"
                raise UserError(f"{self.name} takes no learning rate of {name}: it {takes}")
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


def _at_epochs(ground: Ground, recipe: Recipe) -> Recipe:
    """A recipe at its own length, times the scale.

    Raises `UserError` where it draws so few subnets that it is not the strategy any more.
    """
    scaled = ground.at_batch_size(recipe.scaled(ground.scale))
    table = timetable(scaled, ground.steps_per_epoch(scaled))
    turns = sum(entry.turns for entry in table)
    if turns < FEWEST_HELD:
        raise UserError(
            f"at a scale of {ground.scale:g} {recipe.name} would train {turns} draws of subnets in all, and fewer than "
            f"{FEWEST_HELD} are not {recipe.name}: take a larger --scale"
        )
    return scaled


# tuning


def _tuning(ground: Ground) -> Built:
    arms, runs = [], []
    for name, rate in product(TUNED, TUNING_RATES):
        recipe = RECIPES[name]
        arm = f"{name}@{rate:g}"
        arms.append(Arm(name=arm, about=f"{name}, its highest learning rate {rate:g}"))
        at_rate = _at_epochs(ground, recipe.at_rate(rate / recipe.phases[0].lr))
        factors: Factors = {"strategy": name, "rate": rate}
        runs += [_run(arm, seed, at_rate, ground.model(), factors=factors) for seed in ground.seeds]
    return Built(arms=arms, runs=runs, evaluate={"split": "validate"})


# baseline


def _held_stratified() -> Recipe:
    """RSS but for its draws, which are uniform in MACs: it removes selection bias and nothing else."""
    rss = RECIPES["rss"]
    phase = rss.phases[0].model_copy(update={"subnets": ("stratified",)})
    return rss.model_copy(update={"name": "stratified-held", "about": _held_stratified.__doc__, "phases": (phase,)})


def _baseline(ground: Ground) -> Built:
    rss, short, ps, ofa, released = (RECIPES[name] for name in ("rss", "rss-short", "ps", "ps-ofa", "ps-released"))
    at_passes = ps.scaled(rss.passes / ps.passes)
    arms: list[tuple[str, str, Recipe, str, str | None]] = [
        ("rss", "Random Subnet Sampling", rss, "epochs", "rss"),
        ("rss-short", "Random Subnet Sampling in 180 of 590 epochs", short, "own", "rss"),
        ("stratified", "Random Subnet Sampling with draws uniform in MACs", _held_stratified(), "epochs", "rss"),
        ("ps", "Progressive Shrinking, repaired, at the epochs of rss, as in the paper", ps, "epochs", "ps"),
        ("ps@rss-passes", "The same at the subnet passes of rss", at_passes, "passes", "ps"),
        ("ps-ofa", "Progressive Shrinking as OFA trains it, at the epochs of rss", ofa, "epochs", "ps-ofa"),
        ("ps-released", "Progressive Shrinking as released with arXiv 2204.09210", released, "epochs", None),
    ]
    rates = {name: ground.rates.get(tuned_as, 1.0) if tuned_as else 1.0 for name, _, _, _, tuned_as in arms}
    arms += [
        (f"{name}-published", f"{about}; at the published learning rate", recipe, f"{match}, published rate", None)
        for name, about, recipe, match, _ in arms
        if name in ("rss", "ps") and rates[name] != 1.0
    ]
    model = ground.model()
    runs = []
    for name, _, recipe, match, _ in arms:
        rate = rates.get(name, 1.0)
        factors: Factors = {"strategy": recipe.name, "match": match, "rate": rate}
        at_rate = _at_epochs(ground, recipe.at_rate(rate))
        runs += [_run(name, seed, at_rate, model, factors=factors) for seed in ground.seeds]
    return Built(arms=[Arm(name=name, about=about) for name, about, *_ in arms], runs=runs, evaluate={})


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
    turns = ground.steps(_at_epochs(ground, RECIPES["spos"]))
    probes, buckets = ground.probes(DOSE_PROBES, 1)
    alone = (f"k-{DOSES[0]}", DOSES[0], turns, "The probe alone")
    double = (DOUBLE_TURNS, DOSES[0], 2 * turns, "The probe alone, with the turns of the others too")
    shared = [(f"k-{dose}", dose, 2 * turns, _dose_about(dose)) for dose in DOSES[1:]]
    runs = []
    for seed, (number, probe), (name, dose, steps, _) in product(
        ground.seeds, enumerate(probes), [alone, double, *shared]
    ):
        recipe = _cycle(name, dose_cycle(ground, probe, dose, seed), steps, ground)
        factors: Factors = {"dose": dose, "probe": number, "turns": "double" if name == DOUBLE_TURNS else "own"}
        runs.append(_run(name, seed, recipe, ground.model(), part=f"-p{number}", factors=factors, probes=(probe,)))
    arms = [Arm(name=name, about=about) for name, _, _, about in [alone, double, *shared]]
    return Built(arms=arms, runs=runs, evaluate={"per_bucket": 0, "probes": probes, **buckets})


def _dose_about(dose: int | str) -> str:
    return f"The probe and {'all subnets' if dose == 'all' else f'{int(dose) - 1} other'}, in turn"


# solo


def _solo(ground: Ground) -> Built:
    supernets = {name: _at_epochs(ground, RECIPES[name]) for name in SOLO_SUPERNETS}
    (steps,) = {ground.steps(recipe) for recipe in supernets.values()}
    probes, buckets = ground.probes(SOLO_BUCKETS, SOLO_PROBES // SOLO_BUCKETS)
    model = ground.model()
    runs = []
    for seed in ground.seeds:
        for name, recipe in supernets.items():
            factors: Factors = {"match": "supernet", "strategy": name}
            runs.append(_run(f"supernet-{name}", seed, recipe, model, factors=factors))
        for number, probe in enumerate(probes):
            share = expected_share(ground.net.cost, ground.net.space.parse(probe))
            for match, length in (("exposure", max(1, round(share * steps))), ("epochs", steps)):
                arm = f"alone-{match}"
                recipe = _cycle(arm, (probe,), length, ground, hold="epoch")
                factors = {"match": match, "probe": number, "share": share}
                runs.append(_run(arm, seed, recipe, model, part=f"-p{number}", factors=factors, probes=(probe,)))
    arms = [
        Arm(name="supernet-rss", about="The probes inside a supernet, trained by one uniform subnet an epoch"),
        Arm(name="supernet-spos", about="The probes inside a supernet, trained by one uniform subnet a step"),
        Arm(name="alone-exposure", about="Each probe alone, for the exposure that its weights have in the supernets"),
        Arm(name="alone-epochs", about="Each probe alone, for as many epochs as the supernets"),
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
    """One cell: the largest first, then one subnet a step in five phases, each with a cosine of its own.

    Steps and the learning rate at every step are the same in every cell. With a teacher the two losses are averaged,
    so that a step is as large as with labels alone. Channels are sorted where widths begin to shrink: before each
    expand phase of the order, else before the first phase that trains the whole space.

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
    averaged = {"target": "labels+teacher", "label_weight": 0.5, "teacher_weight": 0.5}
    taught: dict[str, Any] = averaged if distillation == "teacher" else {}
    lr = base.phases[0].lr
    phases = [Phase(name="largest", epochs=steps[0] / per_epoch, lr=lr, keep_largest=ONLY_LARGEST)]
    for i, ((name, _, kept), length) in enumerate(zip(later, steps[1:], strict=True)):
        phases.append(
            Phase(
                name=name,
                epochs=length / per_epoch,
                lr=lr,
                keep_largest=kept,
                subnets=(slot,),
                **taught,
                sort_channels="expand" in name if order == "shrinking" else i == 0,
            )
        )
    about = f"Order: {order}; distillation: {distillation}; sampler: {sampler}."
    return base.model_copy(update={"name": "factorial", "about": about, "phases": tuple(phases)})


# geometry


def _geometry(ground: Ground) -> Built:
    arms, runs = [], []
    for geometry, strategy in product(("paper", "cifar"), ("ps", "rss")):
        name = f"{strategy}-{geometry}"
        arms.append(Arm(name=name, about=f"{strategy} in the {geometry} geometry"))
        recipe = _at_epochs(ground, RECIPES[strategy].at_rate(ground.rates.get(strategy, 1.0)))
        factors: Factors = {"geometry": geometry, "strategy": strategy}
        runs += [_run(name, seed, recipe, ground.model(geometry), factors=factors) for seed in ground.seeds]
    return Built(arms=arms, runs=runs, evaluate={"buckets_m": ()})


_DESIGNS = (
    Design(
        name="tuning",
        about="Each strategy at each of a grid of learning rates, the same for all, on the validate split.",
        question="Which learning rate suits which strategy?",
        build=_tuning,
    ),
    Design(
        name="baseline",
        about="The paper's strategies at equal epochs, as in the paper: random subnet sampling, also in 180 epochs and "
        "without selection bias; progressive shrinking repaired, as OFA trains it and as released; and repaired at "
        "equal subnet passes. Seeds, images, network and evaluated subnets are the same.",
        question="Does random subnet sampling beat progressive shrinking?",
        build=_baseline,
        tunable=TUNED,
    ),
    Design(
        name="dose",
        about="A probe shares its weights with ever more other subnets. Its own turns, and their learning rates, are "
        "the same in every run; one control gives it the turns of the others too.",
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
        "combinations, at equal passes and the same learning rate and size of gradient at every step.",
        question="Does mitigating interference matter more than removing selection bias?",
        build=_factorial,
    ),
    Design(
        name="geometry",
        about="Progressive shrinking and random sampling at equal epochs, in the paper's geometry, whose last maps are "
        "tiny, and in the CIFAR geometry.",
        question="Does the answer depend on the network's geometry?",
        build=_geometry,
        tunable=("rss", "ps"),
    ),
)

STUDIES: dict[str, Design] = {design.name: design for design in _DESIGNS}
"""Every built-in study by name."""
