"""The built-in studies are planned exactly: counts, equal passes, equal learning rates, nested pools, balance."""

import math
import random
from collections import Counter
from itertools import product

import pytest

from trainonce.cost import Cost, CostModel, CostTerm
from trainonce.errors import UserError
from trainonce.lab.designs import DOSES, STUDIES, dose_pool
from trainonce.lab.share import expected_share
from trainonce.lab.study import Ground, Study, StudyRun, check_architectures
from trainonce.recipes import Recipe, timetable
from trainonce.sampling import SubnetDraws
from trainonce.space import Choice, SearchSpace

IMAGES = 1280


def pace(recipe: Recipe) -> float:
    return {"ps": 3.0, "rss": 0.8}[recipe.name]


def ground(*, scale: float = 0.02, seeds: tuple[int, ...] = (0, 1, 2), batch_size: int | None = None) -> Ground:
    return Ground(
        image_size=8,
        channels=1,
        classes=10,
        train_images=IMAGES,
        pace=pace,
        scale=scale,
        seeds=seeds,
        batch_size=batch_size,
    )


@pytest.fixture(scope="module")
def planned() -> dict[str, Study]:
    return {name: design.study(ground()) for name, design in STUDIES.items()}


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


def of(study: Study, arm: str, seed: int = 0) -> list[StudyRun]:
    return [run for run in study.runs if run.arm == arm and run.seed == seed]


@pytest.mark.parametrize(
    ("name", "arms", "runs"), [("baseline", 5, 15), ("dose", 6, 36), ("solo", 3, 51), ("factorial", 8, 24)]
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
    assert STUDIES[name].study(ground()) == study


class TestBaseline:
    @pytest.mark.parametrize("scale", [0.004, 0.02, 0.1, 1.0])
    @pytest.mark.parametrize("batch_size", [None, 256])
    def test_passes_are_equal(self, scale: float, batch_size: int | None) -> None:
        study = STUDIES["baseline"].study(ground(scale=scale, batch_size=batch_size))
        assert len({passes(of(study, arm)[0]) for arm in ("ps-released", "ps", "rss")}) == 1

    def test_at_full_scale_they_are_the_papers(self) -> None:
        study = STUDIES["baseline"].study(ground(scale=1))
        assert of(study, "rss")[0].recipe.epochs == pytest.approx(590, abs=1)
        assert of(study, "rss-short")[0].recipe.epochs == pytest.approx(180, abs=1)
        assert of(study, "ps")[0].recipe.epochs == pytest.approx(590 * 590 / 1170, abs=1)

    def test_equal_seconds_follow_from_the_paces(self, planned: dict[str, Study]) -> None:
        ps, timed = (of(planned["baseline"], arm)[0].recipe for arm in ("ps", "rss@ps-seconds"))
        assert timed.epochs * 0.8 == pytest.approx(ps.epochs * 3.0)

    def test_a_larger_batch_has_a_larger_rate(self) -> None:
        small, large = (STUDIES["baseline"].study(ground(batch_size=size)) for size in (64, 256))
        for run, other in zip(small.runs, large.runs, strict=True):
            assert other.recipe.phases[0].lr == pytest.approx(4 * run.recipe.phases[0].lr)


class TestDose:
    def test_probes_have_the_same_exposure_at_every_dose(self, planned: dict[str, Study]) -> None:
        for seed, probe in product((0, 1, 2), (0, 1)):
            exposures, turns = [], []
            for dose in DOSES:
                (run,) = (r for r in of(planned["dose"], f"k-{dose}", seed) if r.factors["probe"] == probe)
                (phase,) = run.recipe.phases
                assert run.probes is not None
                own = [phase.cycle[step % len(phase.cycle)] == run.probes[0] for step in range(steps(run)[0])]
                exposures.append(math.fsum(lr for lr, mine in zip(rates(run), own, strict=True) if mine))
                turns.append(sum(own))
            assert exposures == pytest.approx([exposures[0]] * len(DOSES), rel=1e-12)
            assert len(set(turns)) == 1

    def test_so_does_the_loop_see_it(self, planned: dict[str, Study]) -> None:
        """The same by what the loop draws and the timetable says."""
        exposures = []
        net = ground().net
        for run in (
            r for arm in planned["dose"].arms for r in of(planned["dose"], arm.name) if r.factors["probe"] == 0
        ):
            (entry,) = timetable(run.recipe, IMAGES // run.recipe.batch_size)
            draws = SubnetDraws(entry.phase.subnets, net.cost, entry.phase.cycle)
            assert run.probes is not None
            probe, rng = net.space.parse(run.probes[0]), random.Random(0)
            exposures.append(math.fsum(entry.lr(s) for s in range(entry.end) if draws.draw(rng, s) == [[probe]]))
        assert exposures == pytest.approx([exposures[0]] * len(DOSES), rel=1e-12)

    def test_pools_are_nested_and_distinct(self, planned: dict[str, Study]) -> None:
        for seed in (0, 1, 2):
            pools = {}
            for dose in (2, 4, 16, 64):
                run = of(planned["dose"], f"k-{dose}", seed)[0]
                cycle = run.recipe.phases[0].cycle
                assert run.probes is not None
                assert set(cycle[::2]) == set(run.probes)
                pools[dose] = cycle[1::2]
                assert len({*cycle}) == dose, "the probe and as many others, all distinct"
            for small, large in ((2, 4), (4, 16), (16, 64)):
                assert pools[large][: len(pools[small])] == pools[small]

    def test_others_take_their_turns_equally(self, planned: dict[str, Study]) -> None:
        run = of(planned["dose"], "k-16")[0]
        cycle = run.recipe.phases[0].cycle
        turns = Counter(cycle[step % len(cycle)] for step in range(1, steps(run)[0], 2))
        assert max(turns.values()) - min(turns.values()) <= 1

    def test_seeds_have_pools_of_their_own(self) -> None:
        at = ground()
        probe = str(at.net.space.largest())
        assert dose_pool(at, probe, 5, 0) != dose_pool(at, probe, 5, 1)
        assert dose_pool(at, probe, 5, 0) == dose_pool(at, probe, 9, 0)[:5]


class TestSolo:
    def test_probes_come_in_pairs_of_equal_size(self, planned: dict[str, Study]) -> None:
        plan, net = planned["solo"].evaluate, ground().net
        macs = [net.cost(net.space.parse(probe)).macs / 1e6 for probe in plan.probes]
        assert len(set(plan.probes)) == 8
        assert plan.half_m is not None
        for centre in plan.buckets_m:
            assert sum(abs(m - centre) <= plan.half_m for m in macs) == 2

    def test_lengths(self, planned: dict[str, Study]) -> None:
        (supernet,) = of(planned["solo"], "supernet")
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
        net, rng = ground().net, random.Random(1)
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
        study = STUDIES["factorial"].study(ground(scale=scale, seeds=(0,)))
        total = round(590 * scale * IMAGES / 64)
        first = of(study, "none")[0]
        for run in study.runs:
            assert sum(steps(run)) == passes(run) == total
            table = timetable(run.recipe, IMAGES // 64)
            found = [entry.lr(step) for entry in table for step in range(entry.start, entry.end)]
            assert found == pytest.approx(rates(first))

    def test_all_begin_alike(self, planned: dict[str, Study]) -> None:
        assert len({run.recipe.phases[0].model_dump_json() for run in planned["factorial"].runs}) == 1
        (largest,) = {steps(run)[0] for run in planned["factorial"].runs}
        assert largest / sum(steps(planned["factorial"].runs[0])) == pytest.approx(180 / 590, abs=0.01)

    def test_factors_say_what_is_trained(self, planned: dict[str, Study]) -> None:
        for run in planned["factorial"].runs:
            later = run.recipe.phases[1:]
            assert len(later) == (5 if run.factors["order"] == "shrinking" else 1)
            assert {phase.subnets for phase in later} == {(run.factors["sampler"],)}
            learned = "labels+teacher" if run.factors["distillation"] == "teacher" else "labels"
            assert {phase.target for phase in later} == {learned}
            assert [phase.sort_channels for phase in run.recipe.phases] == [False, True] + [False] * (len(later) - 1)

    def test_too_short_to_have_every_phase(self) -> None:
        with pytest.raises(UserError, match="larger --scale"):
            STUDIES["factorial"].study(ground(scale=0.0005))


def test_geometry(planned: dict[str, Study]) -> None:
    study = planned["geometry"]
    assert len(study.runs) == 12
    assert len({passes(run) for run in study.runs}) == 1
    by_geometry = {run.factors["geometry"]: run.model for run in study.runs}
    differing = {key for key in by_geometry["paper"] if by_geometry["paper"][key] != by_geometry["cifar"][key]}
    assert differing == {"stem_stride", "strides"}
    assert study.evaluate.buckets_m == (), "each geometry spreads its own"
