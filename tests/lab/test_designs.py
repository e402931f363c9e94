"""The built-in studies are planned exactly: counts, equal passes, equal learning rates, nested pools, balance."""

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from trainonce.cost.macs import Cost, CostModel, CostTerm
from trainonce.errors import UserError
from trainonce.lab.studies.built_in import STUDIES
from trainonce.lab.studies.dose import dose_pool
from trainonce.lab.studies.share import expected_share
from trainonce.lab.studies.study import Study, StudyRun, StudySetup, check_architectures
from trainonce.recipes import RECIPES, timetable
from trainonce.sampling import SubnetDraws
from trainonce.space import Choice, SearchSpace

IMAGES = 1280


def setup_for(
    *,
    scale: float = 0.1,
    seeds: tuple[int, ...] = (0, 1, 2),
    batch_size: int | None = None,
    rates: dict[str, float] | None = None,
) -> StudySetup:
    return StudySetup(
        image_size=8,
        channels=1,
        classes=10,
        train_images=IMAGES,
        scale=scale,
        seeds=seeds,
        batch_size=batch_size,
        rates=rates or {},
    )


@pytest.fixture(scope="module")
def planned() -> dict[str, Study]:
    return {name: design.study(setup_for()) for name, design in STUDIES.items()}


def steps(run: StudyRun) -> list[int]:
    """Of each phase, as the training loop rounds them."""
    per_epoch = IMAGES // run.recipe.batch_size
    return [max(1, round(phase.epochs * per_epoch)) for phase in run.recipe.phases]


def passes(run: StudyRun) -> int:
    return sum(n * len(phase.subnets) for n, phase in zip(steps(run), run.recipe.phases, strict=True))


def rates(run: StudyRun) -> list[float]:
    """The learning rate of each step of a recipe on one cosine."""
    total = sum(steps(run))
    (top,) = {phase.lr for phase in run.recipe.phases}
    return [top * (1 + math.cos(math.pi * step / total)) / 2 for step in range(total)]


def looped_rates(run: StudyRun) -> list[float]:
    """The learning rate of each step, as the training loop has it."""
    table = timetable(run.recipe, IMAGES // run.recipe.batch_size)
    return [entry.lr(step) for entry in table for step in range(entry.start, entry.end)]


def of(study: Study, arm: str, seed: int = 0) -> list[StudyRun]:
    return [run for run in study.runs if run.arm == arm and run.seed == seed]


@pytest.mark.parametrize(
    ("name", "arms", "runs"),
    [("tuning", 9, 27), ("baseline", 7, 21), ("dose", 4, 24), ("solo", 4, 30), ("factorial", 8, 24)],
)
def test_counts(planned: dict[str, Study], name: str, arms: int, runs: int) -> None:
    study = planned[name]
    assert (len(study.arms), len(study.runs)) == (arms, runs)
    assert {run.arm for run in study.runs} == {arm.name for arm in study.arms}
    assert [run.seed for run in study.runs] == sorted(run.seed for run in study.runs)
    check_architectures(study)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_a_value(planned: dict[str, Study], name: str) -> None:
    study = planned[name]
    assert Study.parse(study.model_dump(mode="json"), where="here") == study
    assert study.design == name
    assert STUDIES[name].study(setup_for()) == study


class TestTuning:
    def test_one_grid_for_all(self, planned: dict[str, Study]) -> None:
        """The same highest rates; every other rate of a recipe keeps its proportion."""
        study = planned["tuning"]
        assert study.evaluate.split == "validate"
        for name in ("rss", "ps", "ps-ofa"):
            own = RECIPES[name].phases
            for rate in (0.01, 0.03, 0.08):
                (run,) = of(study, f"{name}@{rate:g}")
                phases = run.recipe.phases
                assert phases[0].lr == pytest.approx(rate)
                shares = [phase.lr / phases[0].lr for phase in phases]
                assert shares == pytest.approx([phase.lr / own[0].lr for phase in own])


class TestBaseline:
    @pytest.mark.parametrize("images", [1000, 40_000])
    def test_at_full_scale_it_is_the_papers(self, images: int) -> None:
        """590 epochs of whole batches, by arms that train as many subnets as in the paper."""
        at = replace(setup_for(scale=1.0, seeds=(0,)), train_images=images)
        per_epoch = images // 64
        for arm, epochs, held in (("rss", 590, 590), ("stratified", 590, 590), ("rss-short", 180, 180)):
            (run,) = of(STUDIES["baseline"].study(at), arm)
            (entry,) = timetable(run.recipe, per_epoch)
            assert (entry.end, entry.turns) == (epochs * per_epoch, held)
        for arm in ("ps", "ps-ofa", "ps-released"):
            (run,) = of(STUDIES["baseline"].study(at), arm)
            assert timetable(run.recipe, per_epoch)[-1].end == 590 * per_epoch
            assert at.passes(run.recipe) == 1170 * per_epoch

    @pytest.mark.parametrize("scale", [0.1, 0.3, 1.0])
    @pytest.mark.parametrize("batch_size", [None, 256])
    def test_passes_are_equal(self, scale: float, batch_size: int | None) -> None:
        at = setup_for(scale=scale, batch_size=batch_size)
        study = STUDIES["baseline"].study(at)
        (ps,), (rss,) = (of(study, arm) for arm in ("ps@rss-passes", "rss"))
        assert at.passes(ps.recipe) == pytest.approx(at.passes(rss.recipe), rel=0.02)
        assert [phase.lr for phase in ps.recipe.phases] == [phase.lr for phase in of(study, "ps")[0].recipe.phases]

    def test_stratified_differs_from_rss_in_its_draws_alone(self, planned: dict[str, Study]) -> None:
        ours, rss = (of(planned["baseline"], arm)[0].recipe.phases for arm in ("stratified", "rss"))
        assert [phase.subnets for phase in ours] == [("stratified",)]
        assert [phase.model_copy(update={"subnets": ("uniform",)}) for phase in ours] == list(rss)

    def test_tuned_rates_and_published_ones(self) -> None:
        study = STUDIES["baseline"].study(setup_for(rates={"rss": 3.0, "ps": 8.0, "ps-ofa": 0.5}))
        found = {arm.name: of(study, arm.name)[0].recipe.phases[0].lr for arm in study.arms}
        assert found == pytest.approx(
            {
                "rss": 0.03,
                "rss-short": 0.03,
                "stratified": 0.03,
                "rss-published": 0.01,
                "ps": 0.08,
                "ps@rss-passes": 0.08,
                "ps-published": 0.01,
                "ps-ofa": 0.040625,
                "ps-released": 0.01,
            }
        )

    def test_too_few_subnets(self) -> None:
        with pytest.raises(UserError, match="rss would train 24 draws of subnets in all, and fewer than 50"):
            STUDIES["baseline"].study(setup_for(scale=0.002))

    def test_a_larger_batch_has_a_larger_rate(self) -> None:
        small, large = (STUDIES["baseline"].study(setup_for(batch_size=size)) for size in (64, 256))
        for run, other in zip(small.runs, large.runs, strict=True):
            assert other.recipe.phases[0].lr == pytest.approx(4 * run.recipe.phases[0].lr)


class TestDose:
    def test_probes_have_the_same_exposure_at_every_dose(self, planned: dict[str, Study]) -> None:
        for seed, probe in product((0, 1, 2), (0, 1)):
            exposures, turns = [], []
            for dose in (1, 16, "all"):
                (run,) = (r for r in of(planned["dose"], f"k-{dose}", seed) if r.factors["probe"] == probe)
                (phase,) = run.recipe.phases
                assert run.probes is not None
                own = [phase.cycle[step % len(phase.cycle)] == run.probes[0] for step in range(steps(run)[0])]
                exposures.append(math.fsum(lr for lr, mine in zip(rates(run), own, strict=True) if mine))
                turns.append(sum(own))
            assert exposures == pytest.approx([exposures[0]] * len(exposures), rel=1e-12)
            assert len(set(turns)) == 1

    def test_so_does_the_loop_see_it(self, planned: dict[str, Study]) -> None:
        """The same by what the loop draws and the timetable says."""
        exposures = []
        net = setup_for().net
        for run in (
            r for r in planned["dose"].runs if (r.seed, r.factors["probe"], r.factors["turns"]) == (0, 0, "own")
        ):
            (entry,) = timetable(run.recipe, IMAGES // run.recipe.batch_size)
            draws = SubnetDraws(entry.phase.subnets, net.cost, entry.phase.cycle)
            assert run.probes is not None
            probe, rng = net.space.parse(run.probes[0]), random.Random(0)
            exposures.append(math.fsum(entry.lr(s) for s in range(entry.end) if draws.draw(rng, s) == [[probe]]))
        assert exposures == pytest.approx([exposures[0]] * len(exposures), rel=1e-12)

    def test_the_control_has_all_turns_of_the_others_too(self, planned: dict[str, Study]) -> None:
        """The probe alone, for exactly as many steps, at the same rates, as where it shares."""
        (double,) = (run for run in of(planned["dose"], "k-1-double") if run.factors["probe"] == 0)
        (shared,) = (run for run in of(planned["dose"], "k-all") if run.factors["probe"] == 0)
        assert double.recipe.phases[0].cycle == double.probes == shared.probes
        assert rates(double) == rates(shared)

    def test_a_pool_is_distinct(self, planned: dict[str, Study]) -> None:
        for seed in (0, 1, 2):
            run = of(planned["dose"], "k-16", seed)[0]
            cycle = run.recipe.phases[0].cycle
            assert run.probes is not None
            assert set(cycle[::2]) == set(run.probes)
            assert len({*cycle}) == 16, "the probe and as many others, all distinct"

    def test_others_take_their_turns_equally(self, planned: dict[str, Study]) -> None:
        run = of(planned["dose"], "k-16")[0]
        cycle = run.recipe.phases[0].cycle
        turns = Counter(cycle[step % len(cycle)] for step in range(1, steps(run)[0], 2))
        assert max(turns.values()) - min(turns.values()) <= 1

    def test_seeds_have_pools_of_their_own(self) -> None:
        at = setup_for()
        probe = str(at.net.space.largest())
        assert dose_pool(at, probe, 5, 0) != dose_pool(at, probe, 5, 1)
        assert dose_pool(at, probe, 5, 0) == dose_pool(at, probe, 9, 0)[:5]


class TestSolo:
    def test_probes_come_in_pairs_of_equal_size(self, planned: dict[str, Study]) -> None:
        plan, net = planned["solo"].evaluate, setup_for().net
        macs = [net.cost(net.space.parse(probe)).macs / 1e6 for probe in plan.probes]
        assert len(set(plan.probes)) == 4
        assert plan.half_m is not None
        for centre in plan.buckets_m:
            assert sum(abs(m - centre) <= plan.half_m for m in macs) == 2

    def test_lengths(self, planned: dict[str, Study]) -> None:
        (supernet,) = of(planned["solo"], "supernet-spos")
        assert steps(supernet) == steps(of(planned["solo"], "supernet-rss")[0])
        for run in of(planned["solo"], "alone-epochs"):
            assert steps(run) == steps(supernet)
        for run in of(planned["solo"], "alone-exposure"):
            share = run.factors["share"]
            assert isinstance(share, float)
            assert 0.3 < share < 1
            assert steps(run)[0] == pytest.approx(share * steps(supernet)[0], abs=0.5)
            assert sum(rates(run)) == pytest.approx(share * sum(rates(supernet)), rel=0.01)

    def test_each_is_trained_alone(self, planned: dict[str, Study]) -> None:
        for run in of(planned["solo"], "alone-epochs"):
            assert run.recipe.phases[0].cycle == run.probes

    def test_the_share_is_what_draws_come_to(self) -> None:
        """Of the real space, against random draws and what they have in common."""
        net, rng = setup_for().net, random.Random(1)
        arch = net.space.sample(rng)
        draws = 4000
        shared = 0
        for _ in range(draws):
            other = net.space.sample(rng)
            meet = {name: min(value, other[name]) for name, value in arch.items() if name in other}
            shared += net.cost(net.space.check(meet)).params
        assert expected_share(net.cost, arch) == pytest.approx(shared / draws / net.cost(arch).params, rel=0.01)

    def test_the_share_by_hand(self) -> None:
        """Ten fixed weights; block 1 of 6 or 12, always there; block 2 of 6 or 12, there in half of the draws."""
        choices = [Choice(name="depth", values=(1, 2))]
        terms = [CostTerm((), lambda: Cost(0, 10))]
        for block in (1, 2):
            allowed = {depth: (1, 2) for depth in (1, 2) if depth >= block}
            choices.append(Choice(name=f"width{block}", values=(1, 2), parent="depth", allowed=allowed))
            terms.append(CostTerm((f"width{block}",), lambda width: Cost(0, 6 * (width or 0))))
        cost = CostModel(SearchSpace(tuple(choices)), tuple(terms))
        largest = cost.space.largest()
        assert expected_share(cost, largest) == pytest.approx((10 + (6 + 3) + (6 + 3) / 2) / 34)
        assert expected_share(cost, cost.space.smallest()) == 1


LEVELS = {"order": {"shrinking", "none"}, "distillation": {"teacher", "none"}, "sampler": {"uniform", "stratified"}}


class TestFactorial:
    def test_is_balanced(self, planned: dict[str, Study]) -> None:
        cells = Counter(tuple(run.factors[name] for name in LEVELS) for run in planned["factorial"].runs)
        assert cells == dict.fromkeys(product(*LEVELS.values()), 3)
        recipes = [run.recipe.model_dump_json(exclude={"about"}) for run in planned["factorial"].runs if run.seed == 0]
        assert len(set(recipes)) == 8

    @pytest.mark.parametrize("scale", [0.02, 0.1, 1.0])
    def test_passes_and_rates_are_equal(self, scale: float) -> None:
        study = STUDIES["factorial"].study(setup_for(scale=scale, seeds=(0,)))
        total = round(590 * scale * IMAGES / 64)
        first = of(study, "none")[0]
        for run in study.runs:
            assert sum(steps(run)) == passes(run) == total
            assert looped_rates(run) == pytest.approx(looped_rates(first))
            for entry in timetable(run.recipe, IMAGES // 64):
                assert entry.lr(entry.start) == 0.01, "the cosine restarts in every phase"

    def test_all_begin_alike(self, planned: dict[str, Study]) -> None:
        assert len({run.recipe.phases[0].model_dump_json() for run in planned["factorial"].runs}) == 1
        (largest,) = {steps(run)[0] for run in planned["factorial"].runs}
        assert largest / sum(steps(planned["factorial"].runs[0])) == pytest.approx(180 / 590, abs=0.01)

    def test_factors_say_what_is_trained(self, planned: dict[str, Study]) -> None:
        for run in planned["factorial"].runs:
            later = run.recipe.phases[1:]
            assert len(later) == 5
            shrinks = run.factors["order"] == "shrinking"
            assert [bool(phase.keep_largest) for phase in later] == [shrinks] * 4 + [False]
            assert {phase.subnets for phase in later} == {(run.factors["sampler"],)}
            taught = run.factors["distillation"] == "teacher"
            assert {phase.target for phase in later} == {"labels+teacher" if taught else "labels"}
            if taught:
                assert {(phase.label_weight, phase.teacher_weight) for phase in later} == {(0.5, 0.5)}
            first_of_widths = [False, False, False, True, True] if shrinks else [True, False, False, False, False]
            assert [phase.sort_channels for phase in later] == first_of_widths

    def test_too_short_to_have_every_phase(self) -> None:
        with pytest.raises(UserError, match="larger --scale"):
            STUDIES["factorial"].study(setup_for(scale=0.0005))


def test_geometry(planned: dict[str, Study]) -> None:
    study = planned["geometry"]
    assert len(study.runs) == 12
    assert len({sum(steps(run)) for run in study.runs}) == 1, "equal epochs"
    by_geometry = {run.factors["geometry"]: run.model for run in study.runs}
    differing = {key for key in by_geometry["paper"] if by_geometry["paper"][key] != by_geometry["cifar"][key]}
    assert differing == {"stem_stride", "strides"}
    assert study.evaluate.buckets_m == (), "each geometry spreads its own"
