"""Sampling by MACs against the filtered enumeration of a small space, and the paper's buckets."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from trainonce import sampling
from trainonce.cost.macs import Cost, CostModel, CostTerm
from trainonce.cost.partial import PartialCosts
from trainonce.errors import UserError
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.sampling import MacsSampler, SubnetDraws, even_subnets
from trainonce.space import Architecture, Choice, Over, SearchSpace


@cache
def small_cost() -> CostModel:
    """Two elastic stages of a small network: (4 + 16) ** 2 = 400 subnets, which `every` enumerates."""
    net = MobileNetV3(MobileNetV3Settings(resolutions=(12,), num_classes=2, kernel_sizes=(3, 5), depths=(1, 2)))
    fixed: dict[str, tuple[int, ...]] = {
        f"stage{stage}.{name}": (value,)
        for stage in (3, 4, 5)
        for name, value in (("depth", 1), ("block?.kernel_size", 3), ("block?.expand_ratio", 3))
    }
    elastic: dict[str, tuple[int, ...]] = {f"stage{stage}.block?.expand_ratio": (3, 6) for stage in (1, 2)}
    return net.cost.within(net.space.restrict(fixed | elastic))


@cache
def paper_cost() -> CostModel:
    return MobileNetV3(MobileNetV3Settings(num_classes=100)).cost


@cache
def paper_sampler() -> MacsSampler:
    return MacsSampler(paper_cost())


@cache
def every() -> dict[Architecture, float]:
    """All architectures of the small space, with the probability that uniform choices give them."""
    found: dict[Architecture, float] = {}
    blocks = [(k, e) for k in (3, 5) for e in (3, 6)]
    stage = [(block,) for block in blocks] + [(a, b) for a in blocks for b in blocks]
    for first in stage:
        for second in stage:
            values, chance = {}, 1.0
            for number, parts in enumerate((first, second, ((3, 3),), ((3, 3),), ((3, 3),)), start=1):
                values[f"stage{number}.depth"] = len(parts)
                for block, (kernel_size, ratio) in enumerate(parts, start=1):
                    values[f"stage{number}.block{block}.kernel_size"] = kernel_size
                    values[f"stage{number}.block{block}.expand_ratio"] = ratio
                chance *= 1.0 if number > 2 else 0.5 * 0.25 ** len(parts)
            found[small_cost().space.check(values)] = chance
    return found


def macs(arch: Architecture) -> int:
    return small_cost()(arch).macs


def chi_square_passes(counts: Sequence[int], expected: Sequence[float]) -> bool:
    """Pearson's statistic is no more than five standard deviations above its mean."""
    statistic = sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True))
    degrees = len(counts) - 1
    return statistic < degrees + 5 * math.sqrt(2 * degrees)


def test_the_enumeration_is_whole() -> None:
    assert len(every()) == small_cost().space.count() == 400
    assert sum(every().values()) == pytest.approx(1)


def plain_distribution(width: int = 500) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """MACs and chances of uniform draws of the paper's space: blocks, then stages, convolved on a grid."""
    blocks = {term.choices[0].split(".kernel")[0]: term.cost for term in paper_cost().terms if term.choices}
    total = np.ones(1)
    for stage in range(1, 6):
        depths, so_far = np.zeros(8_000_000 // width), np.ones(1)
        for block in range(1, 5):
            values = [blocks[f"stage{stage}.block{block}"](k, e).macs for k in (3, 5, 7) for e in (3, 4, 6)]
            so_far = np.convolve(so_far, np.bincount([round(value / width) for value in values]) / 9)
            if block >= 2:
                depths[: len(so_far)] += so_far / 3
        total = np.convolve(total, np.trim_zeros(depths, "b"))
    (constant,) = (term.cost().macs for term in paper_cost().terms if not term.choices)
    return np.arange(len(total), dtype=np.float64) * width + constant, total


class TestWindow:
    @pytest.mark.parametrize("over", ["choices", "subnets"])
    @pytest.mark.parametrize(("first", "last"), [(0, 30), (150, 190), (360, 399)])
    def test_is_the_filtered_enumeration(self, over: Over, first: int, last: int) -> None:
        by_macs = sorted(macs(arch) for arch in every())
        low, high = by_macs[first], by_macs[last]
        inside = {a: p if over == "choices" else 1.0 for a, p in every().items() if low <= macs(a) <= high}
        assert len(inside) > 30
        sampler, rng, draws = MacsSampler(small_cost(), over=over), random.Random(1), 60 * len(inside)
        counts = Counter(sampler.sample(rng, low, high) for _ in range(draws))
        assert set(counts) <= set(inside)
        total = sum(inside.values())
        assert chi_square_passes([counts[a] for a in inside], [draws * p / total for p in inside.values()])

    def test_the_two_ways_differ(self) -> None:
        """By choices a quarter of the draws has one block in both stages; of the subnets 16 in 400."""
        shares = {}
        for over in ("choices", "subnets"):
            sampler, rng = MacsSampler(small_cost(), over=over), random.Random(2)
            found = [sampler.sample(rng, 0, 1e12) for _ in range(800)]
            shares[over] = sum(a["stage1.depth"] + a["stage2.depth"] == 2 for a in found) / 800
        assert shares["choices"] == pytest.approx(0.25, abs=0.06)
        assert shares["subnets"] == pytest.approx(0.04, abs=0.03)

    def test_range_is_exact(self) -> None:
        sampler = MacsSampler(small_cost())
        assert (sampler.min_macs, sampler.max_macs) == (min(map(macs, every())), max(map(macs, every())))

    def test_the_ends_can_be_drawn(self) -> None:
        for cost, sampler in ((small_cost(), MacsSampler(small_cost())), (paper_cost(), paper_sampler())):
            space, rng = cost.space, random.Random(3)
            assert sampler.sample(rng, 0, sampler.min_macs) == space.smallest()
            assert sampler.sample(rng, sampler.max_macs, 1e12) == space.largest()

    def test_every_single_number_of_macs_can_be_asked_for(self) -> None:
        sampler, rng = MacsSampler(small_cost()), random.Random(4)
        for value in sorted({macs(arch) for arch in every()})[::10]:
            assert macs(sampler.sample(rng, value, value)) == value

    def test_an_empty_window(self) -> None:
        sampler = MacsSampler(small_cost())
        low, high = sampler.min_macs, sampler.max_macs
        says = rf"the space has {low / 1e6:.3f} to {high / 1e6:.3f} M"
        for window in ((0, low - 1), (high + 1, 2 * high), (high, low)):
            with pytest.raises(UserError, match=says):
                sampler.sample(random.Random(0), *window)

    def test_a_gap_between_subnets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sampling, "TRIES", 500)
        values = sorted({macs(arch) for arch in every()})
        width, below = max((after - before, before) for before, after in itertools.pairwise(values))
        with pytest.raises(UserError, match="no subnet with"):
            MacsSampler(small_cost()).sample(random.Random(0), below + 1, below + width - 1)


class TestCostsOfSums:
    """Each layer reads the maps of all before it, as in a DenseNet; with two resolutions 2 * 3 ** 6 subnets."""

    LAYERS = 6

    @classmethod
    def cost(cls, *, resolutions: Sequence[int] = (), base: int = 1) -> CostModel:
        """Layer i has the MACs of its width times that of each layer before it, times `base` ** i, at side 1."""
        widths = tuple(Choice(name=f"layer{i}.width", values=(1, 2, 3)) for i in range(cls.LAYERS))
        pairs = list(itertools.combinations(range(cls.LAYERS), 2))
        if not resolutions:
            terms = [CostTerm((f"layer{i}.width", f"layer{j}.width"), _scaled(base**i)) for i, j in pairs]
            return CostModel(SearchSpace(widths), tuple(terms))
        terms = [CostTerm((f"layer{j}.width", "resolution", f"layer{i}.width"), _scaled(base**i)) for i, j in pairs]
        alone = CostTerm(("resolution",), lambda side: Cost(7 * side**2, 0))
        width = CostTerm(("layer0.width",), lambda width: Cost(5 * width, 0))
        sides = Choice(name="resolution", values=tuple(resolutions))
        return CostModel(SearchSpace((sides, *widths)), (*terms, alone, width, CostTerm((), lambda: Cost(3, 0))))

    @pytest.mark.parametrize("resolutions", [(), (2, 3)])
    def test_draws_are_the_filtered_enumeration(self, resolutions: Sequence[int]) -> None:
        cost = self.cost(resolutions=resolutions)
        archs = [
            cost.space.check(dict(zip((c.name for c in cost.space.choices), values, strict=True)))
            for values in itertools.product(*(choice.values for choice in cost.space.choices))
        ]
        by_macs = sorted(cost(arch).macs for arch in archs)
        sampler, rng = MacsSampler(cost), random.Random(5)
        assert (sampler.min_macs, sampler.max_macs) == (by_macs[0], by_macs[-1])
        low, high = by_macs[len(by_macs) // 3], by_macs[len(by_macs) // 3 + 60]
        inside = [arch for arch in archs if low <= cost(arch).macs <= high]
        counts = Counter(sampler.sample(rng, low, high) for _ in range(30 * len(inside)))
        assert chi_square_passes([counts[arch] for arch in inside], [30.0] * len(inside))

    def test_there_are_as_many_states_as_sums(self) -> None:
        """Of n widths of 1, 2 or 3 there are 2 n + 1 sums; after the last but one layer nothing else is asked."""
        steps = PartialCosts(self.cost()).steps
        assert [len(states) for states in steps] == [1, 3, 5, 7, 9, 11]

    def test_more_than_can_be_listed_are_refused_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where each layer counts otherwise in those after it, every combination makes a difference of its own."""
        monkeypatch.setattr(type(self), "LAYERS", 12)
        with pytest.raises(UserError, match=r"cannot be drawn by their MACs: .* up to layer9.width makes 59,049 diff"):
            MacsSampler(self.cost(base=3))
        cost = self.cost(base=3)
        few = cost.space.restrict({f"layer{i}.width": (3,) for i in range(4, 12)})
        assert MacsSampler(cost.within(few)).max_macs == cost(cost.space.largest()).macs


def _scaled(by: int) -> Callable[..., Cost]:
    return lambda *values: Cost(by * math.prod(values), 0)


class TestPaper:
    @pytest.mark.parametrize("millions", [4, 6, 8, 10, 12, 14])
    @pytest.mark.parametrize("over", ["choices", "subnets"])
    def test_buckets(self, millions: int, over: Over) -> None:
        sampler = paper_sampler() if over == "choices" else MacsSampler(paper_cost(), over=over)
        rng = random.Random(millions)
        low, high = (millions - 0.5) * 1e6, (millions + 0.5) * 1e6
        drawn = {sampler.sample(rng, low, high) for _ in range(25)}
        assert len(drawn) == 25
        assert all(arch in paper_cost().space and low <= paper_cost()(arch).macs <= high for arch in drawn)

    def test_selection_bias(self) -> None:
        """Uniform sampling lies between 5.2 and 11.2 M with 99.8%, and hardly ever in the outer buckets."""
        assert paper_sampler().probability(5.2e6, 11.2e6) == pytest.approx(0.998, abs=0.0005)
        assert paper_sampler().probability(0, 1e9) == pytest.approx(1)
        macs_at, chances = plain_distribution()
        for millions in (4, 6, 8, 10, 12, 14):
            low, high = (millions - 0.5) * 1e6, (millions + 0.5) * 1e6
            expected = float(chances[(low <= macs_at) & (macs_at <= high)].sum())
            assert paper_sampler().probability(low, high) == pytest.approx(expected, rel=0.05)
        assert float(chances[macs_at <= 4.5e6].sum()) == pytest.approx(5.1e-6, rel=0.02)

    def test_probability_is_that_of_plain_draws(self) -> None:
        space, rng, draws = paper_cost().space, random.Random(5), 4000
        found = [paper_cost()(space.sample(rng)).macs for _ in range(draws)]
        for low, high in ((0, 7e6), (7e6, 8e6), (8e6, 9e6), (9.5e6, 20e6)):
            share = sum(low <= value <= high for value in found) / draws
            expected = paper_sampler().probability(low, high)
            assert share == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / draws) + 0.005)


@pytest.mark.parametrize("over", ["choices", "subnets"])
def test_probability_is_the_enumerations(over: Over) -> None:
    """Up to the error of binning: bounds half way between subnets far apart."""
    sampler = MacsSampler(small_cost(), over=over)
    weights = every() if over == "choices" else dict.fromkeys(every(), 1 / 400)
    values = sorted({macs(arch) for arch in every()})
    margin = (values[-1] - values[0]) / 100
    bounds = [(before + after) / 2 for before, after in itertools.pairwise(values) if after - before > margin]
    assert len(bounds) > 3
    for bound in bounds:
        expected = sum(weight for arch, weight in weights.items() if macs(arch) <= bound)
        assert sampler.probability(0, bound) == pytest.approx(expected, rel=1e-9)


class TestNear:
    def test_stays_near(self) -> None:
        sampler, rng = paper_sampler(), random.Random(6)
        span = sampler.max_macs - sampler.min_macs
        for target in (sampler.min_macs, 5e6, 9e6, sampler.max_macs):
            for arch in sampler.near(rng, target, count=5):
                assert abs(paper_cost()(arch).macs - target) <= span / 100

    def test_widens_until_it_finds_one(self) -> None:
        values = sorted({macs(arch) for arch in every()})
        width, below = max((after - before, before) for before, after in itertools.pairwise(values))
        (arch,) = MacsSampler(small_cost()).near(random.Random(0), below + width / 2)
        assert abs(macs(arch) - (below + width / 2)) <= 2 * width

    def test_draws_do_not_depend_on_those_before(self) -> None:
        """In a space with gaps: each draw follows from its own generator, whatever was drawn before it."""
        together = MacsSampler(small_cost())
        size = (together.max_macs - together.min_macs) / sampling.CELLS
        full = {int((macs(arch) - together.min_macs) / size) for arch in every()}
        steps = range(60)
        cells = [random.Random(step).randrange(sampling.CELLS) for step in steps]
        assert 10 < sum(cell not in full for cell in cells) < 50, "the space has gaps, and not gaps alone"
        found = [together.stratified(random.Random(step)) for step in steps]
        assert found == [MacsSampler(small_cost()).stratified(random.Random(step)) for step in steps]
        assert found == [together.stratified(random.Random(step)) for step in steps], "seen before"
        for cell, arch in zip(cells, found, strict=True):
            inside = int((macs(arch) - together.min_macs) / size) == cell
            assert inside == (cell in full)

    @pytest.mark.parametrize(
        "slot", ["uniform", "even", "largest", "smallest", "alternate", "stratified", "fair", "best_up", "worst_up"]
    )
    def test_no_slot_remembers(self, slot: str) -> None:
        draws = SubnetDraws((slot,), small_cost())
        found = [draws.draw(random.Random(turn), turn) for turn in range(12)]
        fresh = [SubnetDraws((slot,), small_cost()).draw(random.Random(turn), turn) for turn in reversed(range(12))]
        assert found == fresh[::-1]

    def test_stratified_is_uniform_in_macs(self) -> None:
        sampler, rng, draws, bins = paper_sampler(), random.Random(7), 480, 8
        span = sampler.max_macs - sampler.min_macs
        found = [paper_cost()(sampler.stratified(rng)).macs for _ in range(draws)]
        counts = Counter(min(bins - 1, int((value - sampler.min_macs) / span * bins)) for value in found)
        assert chi_square_passes([counts[i] for i in range(bins)], [draws / bins] * bins)


class TestSlots:
    def draws(self, *slots: str) -> SubnetDraws:
        return SubnetDraws(slots, paper_cost())

    def test_fair_slots_share_out_every_value(self) -> None:
        draws, rng = self.draws("fair", "fair", "fair"), random.Random(8)
        orders = set()
        for turn in range(20):
            drawn = draws.draw(rng, turn)
            assert [len(candidates) for candidates in drawn] == [1, 1, 1]
            architectures = [arch for (arch,) in drawn]
            assert all(arch in paper_cost().space for arch in architectures)
            for choice in paper_cost().space.choices:
                values = [arch[choice.name] for arch in architectures if choice.name in arch]
                always = all(choice.name in arch for arch in architectures)
                assert len(values) == len(set(values))
                assert not always or sorted(values) == list(choice.values)
            for stage in range(1, 6):
                assert sorted(arch[f"stage{stage}.depth"] for arch in architectures) == [2, 3, 4]
            orders.add(tuple(arch["stage1.depth"] for arch in architectures))
        assert len(orders) > 3

    def test_fair_slots_beyond_the_values_go_round(self) -> None:
        (*drawn,) = self.draws("fair", "fair", "fair", "fair", "fair", "fair").draw(random.Random(9), 0)
        counts = Counter(arch["stage3.depth"] for (arch,) in drawn)
        assert counts == {2: 2, 3: 2, 4: 2}

    def test_fixed_slots(self) -> None:
        space, rng = paper_cost().space, random.Random(0)
        draws = self.draws("largest", "smallest", "alternate")
        for turn in range(4):
            third = space.largest() if turn % 2 else space.smallest()
            assert draws.draw(rng, turn) == [[space.largest()], [space.smallest()], [third]]

    def test_uniform_and_even_slots_are_the_spaces_own_draws(self) -> None:
        space, rng = paper_cost().space, random.Random(10)
        expected = [[space.sample(rng)], [space.sample_even(rng)], [space.sample(rng)]]
        assert self.draws("uniform", "even", "uniform").draw(random.Random(10), 0) == expected

    @pytest.mark.parametrize("slot", ["best_up", "worst_up"])
    def test_three_candidates_near_one_another(self, slot: str) -> None:
        draws, rng = self.draws("largest", slot), random.Random(11)
        span = paper_sampler().max_macs - paper_sampler().min_macs
        means = []
        for turn in range(25):
            (_, candidates) = draws.draw(rng, turn)
            values = [paper_cost()(arch).macs for arch in candidates]
            assert len(values) == 3
            assert max(values) - min(values) <= span / 50
            means.append(sum(values) / 3)
        assert max(means) - min(means) > span / 10

    def test_their_sizes_have_the_prior_of_uniform_draws(self) -> None:
        """AttentiveNAS, section 3.2: the targets are MACs of uniform subnets, not uniform MACs."""
        draws, cost = SubnetDraws(("best_up",), small_cost()), small_cost()
        sizes = [cost(draws.draw(random.Random(n), n)[0][0]).macs for n in range(400)]
        mean = sum(chance * macs(arch) for arch, chance in every().items())
        deviation = math.sqrt(sum(chance * (macs(arch) - mean) ** 2 for arch, chance in every().items()))
        assert np.mean(sizes) == pytest.approx(mean, abs=4 * deviation / math.sqrt(400))
        assert np.std(sizes) == pytest.approx(deviation, rel=0.15)

    def test_draws_stay_in_their_part_of_the_space(self) -> None:
        part = paper_cost().space.keep_largest({"depth": 1, "expand_ratio": 2})
        draws = SubnetDraws(("uniform", "stratified", "best_up", "fair", "smallest"), paper_cost().within(part))
        for turn in range(3):
            for candidates in draws.draw(random.Random(turn), turn):
                assert all(arch in part for arch in candidates)

    def test_follow_from_the_generator(self) -> None:
        slots: tuple[str, ...] = ("uniform", "stratified", "best_up", "fair", "fair")
        first, again = (self.draws(*slots).draw(random.Random(12), 0) for _ in range(2))
        assert first == again


def test_a_coupled_space() -> None:
    """Where the depth fixes the expand ratio, a window still holds what the enumeration holds."""
    net = MobileNetV3(MobileNetV3Settings(resolutions=(12,), num_classes=2, expand_ratios=(3, 6), depths=(1, 2)))
    part = net.space.couple("expand_ratio", "depth").restrict({"kernel_size": (5,)})
    sampler, rng = MacsSampler(net.cost.within(part), over="subnets"), random.Random(13)
    assert part.count() == 2**5
    found = Counter(sampler.sample(rng, sampler.min_macs, sampler.max_macs) for _ in range(32 * 40))
    assert len(found) == 32
    assert chi_square_passes(list(found.values()), [40.0] * 32)


def test_choices_are_values_of_the_model() -> None:
    """A choice that no cost looks at is drawn too, uniformly."""
    net = MobileNetV3(MobileNetV3Settings(resolutions=(12,), num_classes=2))
    smallest = net.space.restrict({"depth": (2,), "kernel_size": (3,), "expand_ratio": (3,)})
    free = Choice(name="colour", values=(0, 1))
    sampler = MacsSampler(net.cost.within(type(smallest)((free, *smallest.choices))))
    rng = random.Random(14)
    counts = Counter(sampler.sample(rng, 0, 1e12)["colour"] for _ in range(400))
    assert chi_square_passes([counts[0], counts[1]], [200.0, 200.0])


class TestCycle:
    def test_goes_round(self) -> None:
        cost = small_cost()
        small, large = cost.space.smallest(), cost.space.largest()
        draws = SubnetDraws(("cycle",), cost, ("smallest", str(large), "smallest"))
        taken = [draws.draw(random.Random(0), turn) for turn in range(7)]
        assert taken == [[[small]], [[large]], [[small]], [[small]], [[large]], [[small]], [[small]]]

    def test_several_slots_of_a_step_take_several_entries(self) -> None:
        cost = small_cost()
        small, large = cost.space.smallest(), cost.space.largest()
        draws = SubnetDraws(("cycle", "largest", "cycle"), cost, ("smallest", "largest", "smallest"))
        assert draws.draw(random.Random(0), 0) == [[small], [large], [large]]
        assert draws.draw(random.Random(0), 1) == [[small], [large], [small]]

    def test_draws_anew_where_it_says_uniform(self) -> None:
        draws = SubnetDraws(("cycle",), small_cost(), ("largest", "uniform"))
        assert draws.draw(random.Random(5), 3) == [[small_cost().space.sample(random.Random(5))]]

    @pytest.mark.parametrize("entry", ["d9", "fair", "best_up", ""])
    def test_what_is_no_architecture(self, entry: str) -> None:
        with pytest.raises(UserError, match=r"a cycle goes round architectures or uniform or stratified: "):
            SubnetDraws(("cycle",), small_cost(), ("largest", entry))

    def test_outside_the_phases_part(self) -> None:
        part = small_cost().within(small_cost().space.restrict({"stage1.depth": (1,)}))
        with pytest.raises(UserError, match="a cycle goes round"):
            SubnetDraws(("cycle",), part, (str(small_cost().space.largest()),))


@pytest.mark.parametrize("share", [0.999, 0.97, 0.8])
def test_the_window_below_a_number_of_macs_holds_a_subnet(share: float) -> None:
    """It begins at the share of it, unless there is nothing; then at the share of that, and so on."""
    counts = sorted({small_cost()(arch).macs for arch in every()})
    sampler = MacsSampler(small_cost())
    for macs in [*counts, *((a + b) / 2 for a, b in itertools.pairwise(counts)), 2 * counts[-1]]:
        low, high = sampler.below(macs, share=share)
        assert high == min(macs, counts[-1])
        assert any(low <= count <= high for count in counts)
        times = round(math.log(low / high) / math.log(share)) if low > counts[0] else None
        if times is not None:
            assert low == pytest.approx(high * share**times)
            assert times == 1 or not any(high * share ** (times - 1) < count <= high for count in counts)


class TestEvenSubnets:
    def test_are_those_of_the_window_each_once(self) -> None:
        cost, rng = small_cost(), random.Random(12)
        common = {arch for arch, n in Counter(cost.space.sample_even(rng) for _ in range(20_000)).items() if n > 20}
        counts = sorted(macs(arch) for arch in common)
        low, high = counts[len(counts) // 4], counts[len(counts) // 2]
        inside = {arch for arch in common if low <= macs(arch) <= high}
        assert len(inside) > 5
        found = even_subnets(cost, random.Random(13), low, high, 10**6)
        assert len(set(found)) == len(found)
        assert inside <= set(found)
        assert all(low <= macs(arch) <= high for arch in found)
        assert even_subnets(cost, random.Random(13), low, high, 3) == found[:3]

    def test_of_an_empty_window_there_are_none(self) -> None:
        assert even_subnets(small_cost(), random.Random(14), 1, 2, 5) == []
