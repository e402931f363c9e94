"""The population: drawn without repeats inside buckets, recorded once, summed up as plain statistics."""

import json
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.lines import a_score

from trainonce.cost.macs import Cost, CostModel, CostTerm
from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score
from trainonce.evaluation.population import (
    Bucket,
    DrawnOver,
    best_within,
    draw_candidates,
    draw_population,
    evaluate_population,
    make_buckets,
    middle_budget,
    newest_lines,
    pareto_front,
    summarise,
)
from trainonce.models import MobileNetV3
from trainonce.records import UncheckedWarning, count_file
from trainonce.run.directory import RunDirectory
from trainonce.run.lines import SubnetScore
from trainonce.sampling import MacsSampler
from trainonce.search.resources import quantity
from trainonce.space import Architecture, Choice, SearchSpace

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]


def counting_cost(role: str | None = None) -> CostModel:
    """A space of 4 x 10 x 10 architectures whose MACs are a plain number: 100 a + 10 b + c, in thousands."""
    choices = [Choice(name="s.a", values=tuple(range(1, 5)), role=role)]
    choices += [Choice(name=f"s.{name}", values=tuple(range(10)), role=role) for name in "bc"]
    weights = {"s.a": 100_000, "s.b": 10_000, "s.c": 1_000}

    def term(name: str, weight: int) -> CostTerm:
        return CostTerm((name,), lambda value: Cost(weight * value, value))

    return CostModel(SearchSpace(tuple(choices)), tuple(term(n, w) for n, w in weights.items()))


def thousands(arch: Architecture) -> int:
    return 100 * arch["s.a"] + 10 * arch["s.b"] + arch["s.c"]


class TestDraw:
    def test_distinct_and_inside(self) -> None:
        buckets = [Bucket(150e3, 20e3), Bucket(300e3, 15e3)]
        drawn = draw_population(counting_cost(), buckets, 25, seed=0)
        assert [bucket for bucket, _ in drawn] == [buckets[0]] * 25 + [buckets[1]] * 25
        for bucket in buckets:
            macs = [thousands(arch) for where, arch in drawn if where == bucket]
            assert len(set(macs)) == 25
            assert all(bucket.centre - bucket.half <= 1e3 * m <= bucket.centre + bucket.half for m in macs)

    def test_the_draw_of_n_begins_every_larger_draw(self) -> None:
        buckets = [Bucket(150e3, 20e3), Bucket(300e3, 15e3)]
        large = draw_population(counting_cost(), buckets, 20, seed=3)
        for n in (1, 7):
            for bucket in buckets:
                small = [a for b, a in draw_population(counting_cost(), buckets, n, seed=3) if b == bucket]
                assert small == [a for b, a in large if b == bucket][:n]

    def test_a_bucket_does_not_depend_on_the_others(self) -> None:
        one, two = Bucket(150e3, 20e3), Bucket(300e3, 15e3)
        alone = draw_population(counting_cost(), [two], 5, seed=3)
        assert [x for x in draw_population(counting_cost(), [one, two], 5, seed=3) if x[0] == two] == alone

    def test_the_seed_decides(self) -> None:
        bucket = [Bucket(250e3, 50e3)]
        first = draw_population(counting_cost(), bucket, 10, seed=0)
        assert draw_population(counting_cost(), bucket, 10, seed=0) == first
        assert draw_population(counting_cost(), bucket, 10, seed=1) != first

    def test_a_small_bucket_is_exhausted(self) -> None:
        bucket = Bucket(203e3, 3e3)  # 200 to 206: seven subnets
        drawn = draw_population(counting_cost(), [bucket], 100, seed=0)
        assert sorted(thousands(arch) for _, arch in drawn) == list(range(200, 207))

    def test_even_ones_come_first_and_others_make_up_for_them(self) -> None:
        """200 to 206: a is the second of 4 and b the first of 10, so the share is 0.10 to 0.25, and c up to 3."""
        cost, bucket = counting_cost(role="width"), Bucket(203e3, 3e3)
        found = [thousands(arch) for _, arch in draw_population(cost, [bucket], 100, seed=0, over="even")]
        assert sorted(found[:4]) == [200, 201, 202, 203]
        assert sorted(found[4:]) == [204, 205, 206]
        few = draw_population(cost, [bucket], 3, seed=0, over="even")
        assert [thousands(arch) for _, arch in few] == found[:3]

    def test_what_buckets_that_touch_share_is_there_once(self) -> None:
        """100 to 150 and 150 to 200: 150 is in both."""
        buckets = [Bucket(125e3, 25e3), Bucket(175e3, 25e3)]
        drawn = draw_population(counting_cost(), buckets, 100, seed=0)
        assert [thousands(arch) for _, arch in drawn].count(150) == 1
        assert {thousands(arch) for _, arch in drawn} == set(range(100, 201))
        assert len(drawn) == 101
        assert all(1e3 * thousands(arch) in bucket for bucket, arch in drawn)

    def test_an_empty_bucket_is_a_sentence(self) -> None:
        with pytest.raises(UserError, match=r"no subnet with 0\.600 to 0\.700 M MACs .* 0\.100 to 0\.499 M"):
            draw_population(counting_cost(), [Bucket(650e3, 50e3)], 1, seed=0)


class TestCandidates:
    """Of sizes 1 to 4 and MACs of the size times 10 b + c, in thousands."""

    @staticmethod
    def cost(*more: CostTerm) -> CostModel:
        b, c = (Choice(name=f"s.{name}", values=tuple(range(10)), role="width") for name in "bc")
        size = Choice(name="resolution", values=(1, 2, 3, 4), role="resolution")
        term = CostTerm((size.name, b.name, c.name), lambda size, b, c: Cost(size * (10 * b + c) * 1000, 0))
        return CostModel(SearchSpace((size, b, c)), (term, *more))

    @pytest.mark.parametrize("over", ["choices", "subnets", "even"])
    def test_of_each_size_in_turn_near_the_limit(self, over: DrawnOver) -> None:
        cost = self.cost()
        [drawn] = draw_candidates(cost, [66e3], 8, seed=0, over=over)
        assert [arch["resolution"] for arch in drawn] == [4, 3, 2, 1, 4, 3, 2, 1]
        assert len(set(drawn)) == 8
        assert all(0.85 * 66e3 <= cost(arch).macs <= 66e3 for arch in drawn)
        assert draw_candidates(cost, [20e3, 66e3], 3, seed=0, over=over)[1] == drawn[:3]

    def test_sizes_with_more_subnets_make_up_for_others(self) -> None:
        """From 56.1 to 66: of size 4 60 and 64, four of size 3, five of size 2, ten of size 1."""
        [drawn] = draw_candidates(self.cost(), [66e3], 100, seed=0)
        sizes = [arch["resolution"] for arch in drawn]
        assert sizes == [4, 3, 2, 1] * 2 + [3, 2, 1] * 2 + [2, 1] + [1] * 5

    def test_a_large_device_has_the_largest_of_smaller_sizes(self) -> None:
        cost = self.cost()
        [drawn] = draw_candidates(cost, [300e3], 40, seed=0)
        of_size = {size: [cost(a).macs / 1e3 for a in drawn if a["resolution"] == size] for size in (1, 2, 3, 4)}
        for size in (1, 2, 3):
            largest = 99 * size
            assert of_size[size][0] == largest
            assert all(0.85 * largest <= macs <= largest for macs in of_size[size])
            assert len(set(of_size[size])) == 10
        assert all(255 <= macs <= 300 for macs in of_size[4])

    def test_the_window_reaches_down_where_few_are_near(self) -> None:
        """There are 0, 20 and 100 thousand MACs: from 76.5 to 90 none."""
        choice = Choice(name="s.c", values=(0, 1, 5), role="width")
        size = Choice(name="resolution", values=(1,), role="resolution")
        term = CostTerm(("s.c",), lambda c: Cost(20_000 * c, 0))
        cost = CostModel(SearchSpace((size, choice)), (term,))
        assert [[cost(arch).macs for arch in drawn] for drawn in draw_candidates(cost, [90e3], 5, seed=0)] == [[20e3]]

    def test_where_the_draws_miss_those_near_the_smallest_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missed(*_: object) -> Architecture:
            raise UserError("none")

        monkeypatch.setattr(MacsSampler, "sample", missed)
        cost = self.cost(CostTerm(("resolution",), lambda _size: Cost(10_000, 0)))
        [drawn] = draw_candidates(cost, [150e3], 9, seed=0)
        found = [(arch["resolution"], cost(arch).macs) for arch in drawn]
        assert found == [(4, 10e3), (3, 10e3), (2, 10e3), (1, 109e3)]

    def test_for_no_limit_no_sampler_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trainonce.evaluation.population.MacsSampler", None)
        assert draw_candidates(self.cost(), [], 9, seed=0) == []

    def test_a_size_of_which_none_fits_is_passed_over(self) -> None:
        cost = self.cost(CostTerm(("resolution",), lambda size: Cost(40_000 * size, 0)))
        [drawn] = draw_candidates(cost, [100e3], 9, seed=0)
        assert {arch["resolution"] for arch in drawn} == {1, 2}
        with pytest.raises(UserError, match=r"no subnet with 0\.03 M MACs or fewer"):
            draw_candidates(cost, [30e3], 1, seed=0)

    @pytest.mark.parametrize("over", ["choices", "subnets", "even"])
    def test_of_one_size_it_is_the_population(self, over: DrawnOver) -> None:
        cost = counting_cost(role="width")
        low, high = 0.85 * 235e3, 235e3
        bucket = Bucket((low + high) / 2, (high - low) / 2)
        population = [arch for _, arch in draw_population(cost, [bucket], 5, seed=1, over=over)]
        assert draw_candidates(cost, [235e3], 5, seed=1, over=over) == [population]


class TestBuckets:
    def test_given_centres(self, make_net: MakeNet) -> None:
        cost = make_net().cost
        assert make_buckets(cost, (4, 6.5)) == [Bucket(4e6, 0.5e6), Bucket(6.5e6, 0.5e6)]
        assert make_buckets(cost, (4,), 0.1) == [Bucket(4e6, 0.1e6)]
        assert str(Bucket(6.5e6, 0.5e6)) == "6.50±0.50 M"
        assert (3.5e6 in Bucket(4e6, 0.5e6), 4.5e6 in Bucket(4e6, 0.5e6), 4.51e6 in Bucket(4e6, 0.5e6)) == (1, 1, 0)

    def test_spread_over_the_range(self, make_net: MakeNet) -> None:
        net = make_net()
        low, high = (net.cost_of(arch).macs for arch in (net.space.smallest(), net.space.largest()))
        buckets = make_buckets(net.cost)
        assert len(buckets) == 6
        assert buckets[0].centre - buckets[0].half == pytest.approx(low)
        assert buckets[-1].centre + buckets[-1].half == pytest.approx(high)
        assert {b.half for b in buckets} == {(high - low) / 20}
        steps = np.diff([b.centre for b in buckets])
        assert steps == pytest.approx(np.full(5, steps[0]))

    def test_spread_buckets_touch_at_most(self) -> None:
        """From 100 to 499 thousand, so that six touch where each reaches 33.25 to either side."""
        cost = counting_cost()
        buckets = make_buckets(cost, (), 0.03325)
        assert [bucket.centre / 1e3 for bucket in buckets] == pytest.approx([133.25 + 66.5 * i for i in range(6)])
        for half_m in (0.0333, 0.1, 0.25, 3.0):
            with pytest.raises(UserError, match=r"6 buckets .* 0\.1 to 0\.499 M MACs overlap") as refused:
                make_buckets(cost, (), half_m)
            most = re.search(r"take at most (0\.\d+),", str(refused.value))
            assert most is not None
            assert len(make_buckets(cost, (), float(most[1]))) == 6, "what it says works"
            assert float(most[1]) == pytest.approx(0.03325, rel=0.01)

    def test_named_buckets_may_touch_in_decimals(self) -> None:
        """0.3 less 0.1 is less than twice 0.1 in binary."""
        assert len(make_buckets(counting_cost(), (0.1, 0.3), 0.1)) == 2
        for centres, half_m in (((0.1, 0.3), 0.1001), ((0.3, 0.3), 1e-9), ((0.3, 0.1, 0.2), 0.051)):
            with pytest.raises(UserError, match="M MACs to either side of their centres overlap"):
                make_buckets(counting_cost(), centres, half_m)

    def test_of_subnets_with_the_same_macs_there_is_one(self) -> None:
        choice = Choice(name="s.a", values=(1, 2), role=None)
        cost = CostModel(SearchSpace((choice,)), (CostTerm(("s.a",), lambda _: Cost(7_000, 1)),))
        assert make_buckets(cost) == [Bucket(7e3, 0.5e6)]
        assert make_buckets(cost, (), 0.1) == [Bucket(7e3, 0.1e6)]
        assert len(draw_population(cost, make_buckets(cost), 5, seed=0)) == 2

    @pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf")])
    def test_no_such_bucket(self, number: float) -> None:
        with pytest.raises(UserError, match="must be positive numbers of million MACs"):
            make_buckets(counting_cost(), (4.0, number))
        with pytest.raises(UserError, match="must be positive numbers of million MACs"):
            make_buckets(counting_cost(), (), number)


def lines(*pairs: tuple[float, float]) -> list[SubnetScore]:
    return [a_score(macs=macs, top1=top1, params=2 * macs, arch=f"a{i}") for i, (macs, top1) in enumerate(pairs)]


PAIRS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 8)), max_size=25)


def quantile(values: list[float], share: float) -> float:
    """The value at a share of the way through the sorted values, between neighbours linearly."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


class TestSummary:
    @given(pairs=PAIRS)
    def test_against_plain_quantiles(self, pairs: list[tuple[int, int]]) -> None:
        buckets = [Bucket(3, 1), Bucket(6, 2), Bucket(11.5, 0.4)]
        found = {s.bucket: s for s in summarise(lines(*pairs), buckets)}
        for bucket in buckets:
            inside = [(m, t) for m, t in pairs if bucket.centre - bucket.half <= m <= bucket.centre + bucket.half]
            assert (bucket in found) == bool(inside)
            if inside:
                s, top1 = found[bucket], [float(t) for _, t in inside]
                assert s.count == len(inside)
                assert s.macs_mean == pytest.approx(sum(m for m, _ in inside) / len(inside))
                five = (s.minimum, s.lower_quartile, s.median, s.upper_quartile, s.maximum)
                assert five == pytest.approx([quantile(top1, q / 4) for q in range(5)])


class TestFront:
    @given(pairs=PAIRS)
    def test_against_brute_force(self, pairs: list[tuple[int, int]]) -> None:
        unbeaten = {(m, t) for m, t in pairs if not any(om <= m and ot >= t and (om, ot) != (m, t) for om, ot in pairs)}
        front = [(line.macs, line.top1) for line in pareto_front(lines(*pairs))]
        assert len(front) == len(set(front))
        assert set(front) == unbeaten
        assert front == sorted(front)


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=9))
def test_the_middle_budget_is_one_that_can_be_asked_for(macs: list[int]) -> None:
    """And that half of them keep, or more, but not one that is a tenth larger."""
    limit = quantity("macs", middle_budget(macs))
    assert sum(one <= limit for one in macs) >= len(macs) / 2
    assert limit <= 1.1 * statistics.median_high(macs) + 1e-6


def test_newest_lines_are_of_one_split_step_and_calibration() -> None:
    every = [
        a_score(split=split, step=step, calibration={"seed": seed})
        for split in ("validate", "test")
        for seed in (1, 2)
        for step in (5, 7, 7)
    ]
    assert newest_lines(every, "test") == every[10:12]
    assert newest_lines([*every, every[7]], "test") == [every[7], every[8], every[7]]
    assert newest_lines([], "test") == []


class CountingEvaluator(Evaluator):
    """Scores by a made-up number and notes what it was asked."""

    def __init__(self, data: DataSet, split: Any = "validate", settings: EvaluateSettings | None = None) -> None:
        super().__init__(data, split, settings or EvaluateSettings(calibration_images=8))
        self.asked: list[Architecture] = []

    def __call__(self, net: Any, arch: Architecture) -> Score:
        self.asked.append(arch)
        return Score(top1=float(len(self.asked)), loss=0.5, images=len(self.split))


@pytest.fixture(scope="module")
def net(make_net: MakeNet) -> MobileNetV3:
    return make_net()


@pytest.fixture(scope="module")
def archs(net: MobileNetV3) -> list[Architecture]:
    return [arch for _, arch in draw_population(net.cost, make_buckets(net.cost), 2, seed=0)]


class TestEvaluate:
    @pytest.fixture
    def run(self, tmp_path: Path) -> RunDirectory:
        return RunDirectory(tmp_path)

    def test_lines(
        self,
        net: MobileNetV3,
        archs: list[Architecture],
        run: RunDirectory,
        make_data: MakeData,
    ) -> None:
        data = make_data()
        evaluator = Evaluator(data, "test", EvaluateSettings(calibration_images=8, seed=4))
        progress: list[tuple[int, SubnetScore]] = []
        found = evaluate_population(
            net, 17, evaluator, run, archs[:3], on_progress=lambda done, line: progress.append((done, line))
        )
        assert [done for done, _ in progress] == [1, 2, 3]
        assert [line for _, line in progress] == run.population()
        assert [line.arch for line in found] == [str(arch) for arch in archs[:3]]
        assert sorted(found, key=lambda line: str(line.arch)) == [line for _, line in progress]
        for arch, line in zip(archs, found, strict=False):
            plain = net.extract(arch)
            assert line.params == sum(p.numel() for p in plain.parameters())
            score = evaluator(net, arch)
            assert line.to_json() == {
                "arch": str(arch),
                "id": arch.id,
                "macs": net.cost_of(arch).macs,
                "params": line.params,
                "top1": score.top1,
                "loss": score.loss,
                "images": 15,
                "step": 17,
                "split": "test",
                "calibration": {"calibration_images": 8, "calibration_batch": 200, "seed": 4},
            }

    def test_what_is_recorded_is_not_done_again(
        self,
        net: MobileNetV3,
        archs: list[Architecture],
        run: RunDirectory,
        make_data: MakeData,
    ) -> None:
        first = CountingEvaluator(make_data())
        begun = evaluate_population(net, 1, first, run, archs, should_stop=lambda: len(first.asked) == 5)
        assert first.asked == sorted(archs, key=str)[:5]  # those that begin alike are together
        second = CountingEvaluator(make_data())
        whole = evaluate_population(net, 1, second, run, archs)
        assert second.asked == sorted(archs, key=str)[5:]
        assert [line.arch for line in whole] == [str(arch) for arch in archs]
        assert begun == [line for line in whole if line in begun]
        assert len(begun) == 5
        third = CountingEvaluator(make_data(), settings=EvaluateSettings(calibration_images=8, score_batch=3))
        assert evaluate_population(net, 1, third, run, archs) == whole  # the score's batches change nothing
        assert third.asked == []
        assert len(run.population()) == len(whole)

    @pytest.mark.parametrize("other", ["step", "split", "images", "calibration images", "seed"])
    def test_what_was_scored_otherwise_is_scored_again(
        self,
        net: MobileNetV3,
        archs: list[Architecture],
        run: RunDirectory,
        make_data: MakeData,
        other: str,
    ) -> None:
        evaluate_population(net, 1, CountingEvaluator(make_data()), run, archs)
        changed = EvaluateSettings(
            calibration_images=9 if other == "calibration images" else 8, seed=1 if other == "seed" else 0
        )
        data = make_data()
        if other == "images":
            data = replace(data, validate=data.validate.drawn(len(data.validate) - 1, seed=0))
        evaluator = CountingEvaluator(data, "test" if other == "split" else "validate", changed)
        evaluate_population(net, 2 if other == "step" else 1, evaluator, run, archs)
        assert set(evaluator.asked) == set(archs)
        assert len(evaluator.asked) == len(archs)
        assert len(run.population()) == 2 * len(archs)
        assert len(newest_lines(run.population(), evaluator.split_name)) == len(archs)

    def test_a_subnet_that_is_there_twice_is_scored_once(
        self,
        net: MobileNetV3,
        archs: list[Architecture],
        run: RunDirectory,
        make_data: MakeData,
    ) -> None:
        evaluator = CountingEvaluator(make_data())
        assert len(evaluate_population(net, 1, evaluator, run, [*archs, *archs])) == len(archs)
        assert len(evaluator.asked) == len(archs)

    def test_a_half_written_line_is_scored_again(
        self,
        net: MobileNetV3,
        archs: list[Architecture],
        run: RunDirectory,
        make_data: MakeData,
    ) -> None:
        evaluate_population(net, 1, CountingEvaluator(make_data()), run, archs)
        content = run.population_file.read_bytes()
        run.population_file.write_bytes(content[:-20])
        count_file(run.population_file).unlink()  # a process that dies in a line has not counted it
        evaluator = CountingEvaluator(make_data())
        with pytest.warns(UncheckedWarning, match="half a line at its end is left out"):
            evaluate_population(net, 1, evaluator, run, archs)
        assert evaluator.asked == [max(archs, key=str)]
        assert len(run.population()) == len(archs)


GOOD = {"arch": "d1", "id": "0", "macs": 5, "params": 7, "top1": 1.5, "loss": 2.0, "images": 3, "step": 1}
GOOD |= {"split": "validate", "calibration": {"calibration_images": 2000, "calibration_batch": 200, "seed": 0}}


@pytest.mark.filterwarnings("ignore::trainonce.records.UncheckedWarning")
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_fuzz(
    tmp_path_factory: pytest.TempPathFactory,
    damaged: Callable[[bytes], st.SearchStrategy[bytes]],
    data: st.DataObject,
) -> None:
    """Whatever bytes are there: a `UserError`, or lines that everything here can work with."""
    run = RunDirectory(tmp_path_factory.getbasetemp() / "fuzzed_population")
    run.path.mkdir(exist_ok=True)
    good = b"".join(json.dumps(GOOD | {"macs": n}).encode() + b"\n" for n in range(3))
    changed = data.draw(damaged(good))
    if data.draw(st.booleans()):  # a line that is JSON, of other keys or kinds
        key = data.draw(st.sampled_from(list(GOOD)))
        junk: list[object] = [None, "", "x", 0, -3, 2.5, float("nan"), float("inf"), 10**400, [], {}]
        odd = GOOD | {key: data.draw(st.sampled_from(junk))}
        if data.draw(st.booleans()):
            del odd[key]
        changed = good + json.dumps(odd).encode() + b"\n"
    run.population_file.write_bytes(changed)
    try:
        read = newest_lines(run.population(), "validate")
        summarise(read, [Bucket(5, 5)])
        pareto_front(read)
        best_within(read, lambda line: line.macs <= 4)
    except UserError:
        return
    assert read
