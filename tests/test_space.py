"""The search space against brute-force enumeration of small spaces."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainonce.errors import UserError
from trainonce.space import UNEVEN, Architecture, Choice, Over, SearchSpace

Values = dict[str, int]


def fits(choice: Choice, values: Mapping[str, int | None]) -> bool:
    """Whether the choice's value is open where its parent has its value, or rightly absent."""
    value = values[choice.name]
    if choice.parent is None or choice.allowed is None:
        return value is not None
    parent = values[choice.parent]
    open_values = () if parent is None else choice.allowed.get(parent, ())
    return value in open_values if open_values else value is None


def every(space: SearchSpace) -> list[Values]:
    """Every architecture, by trying every combination of values and absences."""
    found = []
    for combination in itertools.product(*((None, *choice.values) for choice in space.choices)):
        values = {choice.name: value for choice, value in zip(space.choices, combination, strict=True)}
        if all(fits(choice, values) for choice in space.choices):
            found.append({name: value for name, value in values.items() if value is not None})
    return found


def as_set(architectures: Sequence[Mapping[str, int]]) -> set[frozenset[tuple[str, int]]]:
    return {frozenset(values.items()) for values in architectures}


def chi_square_passes(counts: Sequence[int], expected: Sequence[float]) -> bool:
    """Pearson's statistic is no more than five standard deviations above its mean."""
    statistic = sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True))
    degrees = len(counts) - 1
    return statistic < degrees + 5 * math.sqrt(2 * degrees)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces of up to five choices with any parents, allowed values and groups."""
    choices: list[Choice] = []
    for number in range(draw(st.integers(1, 5))):
        values = sorted(draw(st.sets(st.integers(0, 12), min_size=1, max_size=3)))
        group, letter = draw(st.sampled_from(("", "a.", "a.b.", "c."))), draw(st.sampled_from("dke"))
        parent = draw(st.sampled_from([None, *choices]))
        allowed = None
        if parent is not None:
            subset = st.sets(st.sampled_from(values), min_size=1).map(lambda found: tuple(sorted(found)))
            allowed = draw(st.dictionaries(st.sampled_from(parent.values), subset))
        choices.append(
            Choice(
                name=f"{group}{letter}{number}",
                values=tuple(values),
                parent=None if parent is None else parent.name,
                allowed=allowed,
            )
        )
    return SearchSpace(tuple(choices))


def stages(count: int = 1, *, depths: tuple[int, ...] = (1, 2, 3)) -> SearchSpace:
    """A space like a network's: depths, and blocks that exist where the depth reaches them."""
    choices = []
    for stage in range(1, count + 1):
        depth = f"stage{stage}.depth"
        choices.append(Choice(name=depth, values=depths))
        for block in range(1, depths[-1] + 1):
            for name, values in (("kernel_size", (3, 5)), ("expand_ratio", (3, 4, 6))):
                allowed = {d: values for d in depths if d >= block}
                choices.append(
                    Choice(name=f"stage{stage}.block{block}.{name}", values=values, parent=depth, allowed=allowed)
                )
    return SearchSpace(tuple(choices))


SMALL = SearchSpace(
    (
        Choice(name="s.depth", values=(1, 2, 3)),
        Choice(name="s.block2.kernel", values=(3, 5), parent="s.depth", allowed={2: (3, 5), 3: (3, 5)}),
        Choice(name="s.block3.expand", values=(1, 2, 6), parent="s.depth", allowed={3: (1, 2, 6)}),
        Choice(name="t.depth", values=(1, 2)),
    )
)
"""(1 + 2 + 6) * 2 = 18 architectures."""


class TestCount:
    @settings(max_examples=60, deadline=None)
    @given(spaces())
    def test_is_the_number_enumerated(self, space: SearchSpace) -> None:
        found = every(space)
        assert space.count() == len(found) == len(as_set(found))

    @settings(max_examples=60, deadline=None)
    @given(spaces())
    def test_all_are_enumerated_once(self, space: SearchSpace) -> None:
        found = list(space.architectures())
        assert as_set(found) == as_set(every(space))
        assert len(found) == space.count()
        assert all(arch in space for arch in found)

    def test_known_counts(self) -> None:
        assert SMALL.count() == len(every(SMALL)) == 18
        assert stages(2).count() == (6 + 6**2 + 6**3) ** 2


class TestArchitecture:
    def test_equal_networks_are_equal_values(self) -> None:
        one = SMALL.check({"s.depth": 2, "s.block2.kernel": 5, "t.depth": 1})
        other = SMALL.check({"t.depth": 1, "s.block2.kernel": 5, "s.depth": 2})
        assert one == other
        assert hash(one) == hash(other)
        assert one.id == other.id
        assert one != SMALL.check({"s.depth": 2, "s.block2.kernel": 3, "t.depth": 1})

    def test_blocks_that_depth_drops_do_not_exist(self) -> None:
        space, seen = stages(), set()
        rng = random.Random(1)
        for _ in range(200):
            arch = space.sample(rng)
            blocks = {int(name.split(".")[1].removeprefix("block")) for name in arch if "block" in name}
            assert blocks == set(range(1, arch["stage1.depth"] + 1))
            seen.add(arch["stage1.depth"])
        assert seen == {1, 2, 3}

    def test_ids_tell_architectures_apart(self) -> None:
        found = {SMALL.check(values).id for values in every(SMALL)}
        assert len(found) == 18
        assert all(len(name) == 12 and int(name, 16) >= 0 for name in found)

    def test_is_a_mapping_and_not_equal_to_another(self) -> None:
        arch = SMALL.smallest()
        assert dict(arch) == {"s.depth": 1, "t.depth": 1}
        assert len(arch) == 2
        assert arch != dict(arch)
        with pytest.raises(KeyError, match=r"s\.block2\.kernel"):
            arch["s.block2.kernel"]

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError):
            SMALL.smallest().pairs = ()  # type: ignore[misc]

    def test_text_of_the_docstring(self) -> None:
        text = "d2.k3e6.k5e4_d3.k5e3.k5e3.k3e6"
        arch = stages(2).parse(text)
        assert str(arch) == text
        assert repr(arch) == f"Architecture({text!r})"
        assert [arch["stage1.depth"], arch["stage1.block1.expand_ratio"], arch["stage2.block3.kernel_size"]] == [
            2,
            6,
            3,
        ]


class TestEnds:
    @settings(max_examples=40, deadline=None)
    @given(spaces())
    def test_largest_and_smallest_have_the_end_of_every_open_choice(self, space: SearchSpace) -> None:
        for arch, end in ((space.largest(), max), (space.smallest(), min)):
            assert dict(arch) in every(space)
            for choice in space.choices:
                if choice.name in arch:
                    values = choice.values
                    if choice.allowed is not None and choice.parent is not None:
                        values = choice.allowed[arch[choice.parent]]
                    assert arch[choice.name] == end(values)


class TestParse:
    @settings(max_examples=60, deadline=None)
    @given(spaces(), st.integers(0, 1000))
    def test_round_trip(self, space: SearchSpace, seed: int) -> None:
        arch = space.sample(random.Random(seed))
        assert dict(arch) in every(space)
        assert space.parse(str(arch)) == arch
        assert hash(space.parse(str(arch))) == hash(arch)

    def test_every_text_is_another(self) -> None:
        assert len({str(SMALL.check(values)) for values in every(SMALL)}) == 18

    def test_names_of_the_ends(self) -> None:
        assert SMALL.parse("largest") == SMALL.largest()
        assert SMALL.parse("smallest") == SMALL.smallest()

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", r"ends before s\.depth \(d: 1, 2, 3\)"),
            ("d2", r"ends before s\.block2\.kernel \(k: 3, 5\)"),
            ("d4_d1", r"part 1 is d4 where s\.depth stands, which is d with 1, 2, 3"),
            ("d2.x3_d1", r"part 2 is x3 where s\.block2\.kernel stands, which is k with 3, 5"),
            ("d2.k3_d1_d1", r"is not of the form 'd2\.k3_d1'"),
            ("d2k3_d1", r"is not of the form 'd2\.k3_d1'"),
            ("d02.k3_d1", r"is not of the form 'd2\.k3_d1'"),
            (" d2.k3_d1", r"is not of the form 'd2\.k3_d1'"),
            ("d٢.k3_d1", r"is not of the form 'd2\.k3_d1'"),
            ("d" + "9" * 5000, "part 1 is d9"),
        ],
    )
    def test_errors_say_where(self, text: str, says: str) -> None:
        with pytest.raises(UserError, match=says):
            SMALL.parse(text)

    @settings(max_examples=200, deadline=None)
    @given(st.one_of(st.text(max_size=20), st.text("dke.0123456_", max_size=20)))
    def test_any_text_is_an_architecture_or_a_user_error(self, text: str) -> None:
        try:
            arch = SMALL.parse(text)
        except UserError:
            assert text not in {str(SMALL.check(values)) for values in every(SMALL)}
        else:
            assert text in (str(arch), "largest", "smallest")


class TestSample:
    @pytest.mark.parametrize("over", ["choices", "subnets"])
    def test_frequencies(self, over: Over) -> None:
        probability: dict[Architecture, float] = {}
        for values in every(SMALL):
            share = 1.0
            if over == "choices":
                # Depth of s in 3 ways, that of t in 2; a kernel in 2 and an expand in 3 where they exist.
                share = 18 / (
                    3 * 2 * (2 if "s.block2.kernel" in values else 1) * (3 if "s.block3.expand" in values else 1)
                )
            probability[SMALL.check(values)] = share / 18
        assert sum(probability.values()) == pytest.approx(1)
        rng, draws = random.Random(2), 9000
        counts = Counter(SMALL.sample(rng, over=over) for _ in range(draws))
        assert set(counts) <= set(probability)
        assert chi_square_passes([counts[a] for a in probability], [draws * p for p in probability.values()])

    def test_the_two_ways_differ(self) -> None:
        rng, draws = random.Random(3), 3000
        shallow = sum(SMALL.sample(rng)["s.depth"] == 1 for _ in range(draws)) / draws
        shallow_of_subnets = sum(SMALL.sample(rng, over="subnets")["s.depth"] == 1 for _ in range(draws)) / draws
        assert shallow == pytest.approx(1 / 3, abs=0.05)
        assert shallow_of_subnets == pytest.approx(1 / 9, abs=0.03)

    @settings(max_examples=25, deadline=None)
    @given(spaces())
    def test_over_subnets_on_any_space(self, space: SearchSpace) -> None:
        architectures, rng = every(space), random.Random(4)
        draws = 30 * len(architectures)
        counts = Counter(frozenset(space.sample(rng, over="subnets").items()) for _ in range(draws))
        found = [counts[frozenset(values.items())] for values in architectures]
        assert sum(found) == draws
        degrees = len(found) - 1
        assert sum((n - 30) ** 2 / 30 for n in found) <= degrees + 7 * math.sqrt(2 * degrees) + 7

    def test_follows_from_the_generator(self) -> None:
        space = stages(3)
        first, again = ([space.sample(random.Random(seed)) for seed in range(9)] for _ in range(2))
        assert first == again
        assert len(set(first)) == 9


class TestEven:
    @settings(max_examples=60, deadline=None)
    @given(spaces(), st.integers(0, 2**32))
    def test_one_share_explains_all_choices_of_a_role(self, space: SearchSpace, seed: int) -> None:
        """The i-th of n open values is where i / n to (i + 1) / n are; the ends of the range take what goes beyond."""
        choices = tuple(replace(choice, role="width" if "d" in choice.name else "kernel") for choice in space.choices)
        space = SearchSpace(choices)
        arch = space.sample_even(random.Random(seed))
        assert arch in space
        for role in ("width", "kernel"):
            low, high = 0.0, 1.0
            for choice in choices:
                if choice.role == role and choice.name in arch:
                    values = choice.open_values(arch.get(choice.parent) if choice.parent else None)
                    at, of = values.index(arch[choice.name]), len(values)
                    low = max(low, at / of - UNEVEN if at else 0.0)
                    high = min(high, (at + 1) / of + UNEVEN if at + 1 < of else 1.0)
            assert low <= high

    def test_reaches_both_ends_of_a_large_space(self) -> None:
        """Which draws of each choice by itself about never do."""
        space, rng = stages(5), random.Random(5)
        assert space.count() > 10**9
        drawn = Counter(space.sample_even(rng) for _ in range(3000))
        assert drawn[space.smallest()] > 0
        assert drawn[space.largest()] > 0

    def test_roles_are_independent(self) -> None:
        space, rng = stages(3), random.Random(6)
        both: Counter[tuple[bool, bool]] = Counter()
        for _ in range(3000):
            arch = space.sample_even(rng)
            both[arch["stage1.depth"] == 3, arch["stage1.block1.kernel_size"] == 5] += 1
        deep, large = (sum(n for key, n in both.items() if key[i]) / 3000 for i in (0, 1))
        assert both[True, True] / 3000 == pytest.approx(deep * large, abs=0.03)
        assert deep == pytest.approx(1 / 3, abs=0.04)
        assert large == pytest.approx(1 / 2, abs=0.04)


class TestCheck:
    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"s.depth": 1}, r"lacks t\.depth; it may be 1, 2"),
            ({"s.depth": 2, "t.depth": 1}, r"lacks s\.block2\.kernel; it may be 3, 5"),
            ({"s.depth": 4, "t.depth": 1}, r"s\.depth is 4; it may be 1, 2, 3"),
            ({"s.depth": 1, "t.depth": 1, "s.block2.kernel": 3}, r"s\.block2\.kernel does not exist where s\.depth"),
            ({"s.depth": 1, "t.depth": 1, "u": 3}, r"no choice 'u'; the choices are s\.depth, s\.block2\.kernel"),
        ],
    )
    def test_names_what_is_wrong(self, values: Values, says: str) -> None:
        with pytest.raises(UserError, match=says):
            SMALL.check(values)
        assert values not in SMALL
        assert Architecture(tuple(values.items())) not in SMALL

    def test_membership_is_that_of_the_enumeration(self) -> None:
        everything = every(SMALL)
        for combination in itertools.product((None, 1, 2, 3), (None, 3, 5), (None, 1, 2, 6), (None, 1, 2)):
            pairs = zip((choice.name for choice in SMALL.choices), combination, strict=True)
            values = {name: value for name, value in pairs if value is not None}
            assert (values in SMALL) == (values in everything)
        assert "s.depth" not in SMALL

    def test_an_architecture_of_another_space_is_refused_after_it_was_checked_there(self) -> None:
        arch = SMALL.largest()
        assert arch in SMALL
        assert arch not in SMALL.restrict({"t.depth": (1,)})


class TestRestrict:
    @settings(max_examples=60, deadline=None)
    @given(spaces(), st.data())
    def test_keeps_what_a_filter_keeps(self, space: SearchSpace, data: st.DataObject) -> None:
        choice = data.draw(st.sampled_from(space.choices))
        wanted = data.draw(st.sets(st.sampled_from(choice.values), min_size=1))
        kept = [values for values in every(space) if choice.name not in values or values[choice.name] in wanted]
        closed = [open_ for open_ in (choice.allowed or {}).values() if not set(open_) & wanted]
        if closed:
            with pytest.raises(UserError, match=f"{choice.name} is left without a value"):
                space.restrict({choice.name: sorted(wanted)})
            return
        part = space.restrict({choice.name: sorted(wanted)})
        assert as_set(every(part)) == as_set(kept)
        assert part.count() == len(kept)

    def test_by_the_last_part_and_by_pattern(self) -> None:
        space = stages(2, depths=(1, 2))
        everything = every(space)
        kept = [v for v in everything if all(v[n] == 3 for n in v if n.endswith("kernel_size"))]
        assert as_set(every(space.restrict({"kernel_size": (3,)}))) == as_set(kept)
        kept = [v for v in everything if all(v[n] != 4 for n in v if n.startswith("stage2.") and "expand" in n)]
        assert as_set(every(space.restrict({"stage2.*expand_ratio": (3, 6)}))) == as_set(kept)

    def test_two_patterns_both_hold(self) -> None:
        part = stages(2).restrict({"depth": (1, 2), "stage1.depth": (2, 3)})
        assert part["stage1.depth"].values == (2,)
        assert part["stage2.depth"].values == (1, 2)
        with pytest.raises(UserError, match=r"stage1\.depth is left without a value"):
            stages().restrict({"depth": (1,), "stage1.depth": (3,)})

    def test_nothing_asked_changes_nothing(self) -> None:
        assert stages(2).restrict({}) == stages(2)

    def test_errors_name_what_is_valid(self) -> None:
        with pytest.raises(UserError, match=r"no choice matches 'depht'; the choices are s\.depth, s\.block2\.kernel"):
            SMALL.restrict({"depht": (1,)})
        with pytest.raises(UserError, match=r"s\.depth cannot be restricted to 4: it has 1, 2, 3"):
            SMALL.restrict({"s.depth": (4,)})
        with pytest.raises(UserError, match=r"t\.depth cannot be restricted to : it has 1, 2"):
            SMALL.restrict({"t.depth": ()})
        with pytest.raises(UserError, match=r"no choice 'depth'; the choices are s\.depth"):
            SMALL["depth"]


class TestKeepLargest:
    @pytest.mark.parametrize("depth", [1, 2, 3, 9])
    @pytest.mark.parametrize("expand", [1, 2, 3])
    def test_keeps_what_a_filter_keeps(self, depth: int, expand: int) -> None:
        space = stages()
        kept = [
            values
            for values in every(space)
            if values["stage1.depth"] in (1, 2, 3)[-depth:]
            and all(values[name] in (3, 4, 6)[-expand:] for name in values if "expand" in name)
        ]
        assert as_set(every(space.keep_largest({"depth": depth, "expand_ratio": expand}))) == as_set(kept)

    @pytest.mark.parametrize("largest", [1, 2, 3])
    @pytest.mark.parametrize("smallest", [1, 2, 9])
    def test_the_smallest_of_the_largest(self, largest: int, smallest: int) -> None:
        space, wanted = stages(), (1, 2, 3)[-largest:][:smallest]
        kept = [values for values in every(space) if values["stage1.depth"] in wanted]
        assert as_set(every(space.keep_largest({"depth": largest}).keep_smallest({"depth": smallest}))) == as_set(kept)
        assert space.keep_smallest({"*": 1}).largest() == space.smallest()

    def test_one_of_everything_is_the_largest(self) -> None:
        space = stages(2)
        part = space.keep_largest({"*": 1})
        assert part.count() == 1
        assert part.smallest() == space.largest()

    @pytest.mark.parametrize("count", [0, -1])
    def test_none_is_refused(self, count: int) -> None:
        with pytest.raises(UserError, match="depth"):
            stages().keep_largest({"depth": count})
        with pytest.raises(UserError, match="depth"):
            stages().keep_smallest({"depth": count})


def test_parts_of_one_image_size_each_make_up_the_space() -> None:
    space = SearchSpace((Choice(name="resolution", values=(8, 16, 24), role="resolution"), *stages().choices))
    parts = [every(part) for part in space.by_image_size()]
    assert [{values["resolution"] for values in part} for part in parts] == [{8}, {16}, {24}]
    assert as_set([values for part in parts for values in part]) == as_set(every(space))
    held = Choice(name="x.resolution", values=(1, 2), parent="stage1.depth", allowed={1: (1, 2)})
    assert all(whole.by_image_size() == [whole] for whole in (stages(), SearchSpace((*stages().choices, held))))


class TestCouple:
    def test_keeps_what_a_filter_keeps(self) -> None:
        space, partner = stages(), {1: 3, 2: 4, 3: 6}
        kept = [
            values
            for values in every(space)
            if all(values[name] == partner[values["stage1.depth"]] for name in values if "expand" in name)
        ]
        coupled = space.couple("expand_ratio", "depth")
        assert as_set(every(coupled)) == as_set(kept)
        assert coupled.count() == 2 + 4 + 8

    def test_other_numbers_of_values(self) -> None:
        """The i-th of n goes with the one that lies as far between the ends."""
        coupled = stages().couple("kernel", "depth")
        partners = {arch["stage1.depth"]: arch["stage1.block1.kernel_size"] for arch in map(dict, every(coupled))}
        assert partners == {1: 3, 2: 5, 3: 5}

    def test_refusals(self) -> None:
        with pytest.raises(UserError, match=r"stage1\.depth does not depend on a choice 'kernel_size'"):
            stages().couple("depth", "kernel_size")
        with pytest.raises(UserError, match="no choice matches 'expand'"):
            stages().couple("expand", "depth")


class TestRoles:
    def test_a_role_is_every_choice_that_has_it(self) -> None:
        space = SearchSpace(
            (
                Choice(name="a.size", values=(3, 5), role="kernel"),
                Choice(name="b.kernel", values=(3, 5)),
                Choice(name="c.kernel_size", values=(3, 5)),
                Choice(name="d.size", values=(3, 5)),
            )
        )
        assert [choice.name for choice in space.matching("kernel")] == ["a.size", "b.kernel", "c.kernel_size"]
        assert space.keep_largest({"kernel": 1}).count() == 2
        assert space.keep_largest({"*.size": 1}).count() == 4

    def test_roles_that_a_space_lacks_are_passed_over(self) -> None:
        space = stages()
        assert as_set(every(space.restrict({"resolution": (8,)}))) == as_set(every(space))
        assert as_set(every(space.keep_largest({"resolution": 1}))) == as_set(every(space))
        assert as_set(every(space.couple("resolution", "depth"))) == as_set(every(space))

    def test_others_are_refused(self) -> None:
        with pytest.raises(UserError, match="the role 'length' is none of resolution, depth, width, kernel"):
            Choice(name="a", values=(1,), role="length")


class TestMaking:
    def test_choices_that_cannot_be(self) -> None:
        for values in ((), (3, 2), (2, 2), (-1, 2)):
            with pytest.raises(UserError, match="a: the values must be distinct, rising and not negative"):
                Choice(name="a", values=values)
        with pytest.raises(UserError, match="`parent` and `allowed` go together"):
            Choice(name="a", values=(1,), parent="b")
        for allowed in ((), (3,), (2, 1)):
            with pytest.raises(UserError, match="a: allowed values"):
                Choice(name="a", values=(1, 2), parent="b", allowed={1: allowed})

    def test_spaces_that_cannot_be(self) -> None:
        choice = Choice(name="a", values=(1, 2))
        child = Choice(name="b", values=(1,), parent="a", allowed={1: (1,)})
        with pytest.raises(UserError, match="'a' is not a dotted name or stands twice"):
            SearchSpace((choice, choice))
        with pytest.raises(UserError, match="b: its parent 'a' must come before it"):
            SearchSpace((child, choice))
        for name in ("", "A", "a..b", "1a", "a b"):
            with pytest.raises(UserError, match="is not a dotted name"):
                SearchSpace((Choice(name=name, values=(1,)),))
