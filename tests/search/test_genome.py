"""Genes mean architectures, and features tell architectures apart."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainonce.models import MobileNetV3
from trainonce.search.genome import decode, encode, features
from trainonce.space import Choice, SearchSpace


@pytest.fixture(scope="module")
def net(make_net: Callable[..., MobileNetV3]) -> MobileNetV3:
    """Two depths and two expand ratios, which can be coupled."""
    return make_net(expand_ratios=(3, 4))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_genes_mean_what_they_were_made_of(net: MobileNetV3, seed: int) -> None:
    arch = net.space.sample(random.Random(seed))
    genes = encode(net.space, arch, random.Random(seed + 1))
    assert set(genes) == {choice.name for choice in net.space.choices}, "those of absent choices too"
    assert decode(net.space, genes) == arch


@settings(deadline=None)
@given(data=st.data())
def test_any_genes_mean_some_architecture_of_the_space(net: MobileNetV3, data: st.DataObject) -> None:
    coupled = net.space.couple("expand_ratio", "depth") if data.draw(st.booleans()) else net.space
    genes = {c.name: data.draw(st.integers(0, len(c.values) - 1)) for c in coupled.choices}
    arch = decode(coupled, genes)
    assert arch in coupled
    for choice in coupled.choices:
        if choice.name in arch:
            wanted, open_values = choice.values[genes[choice.name]], choice.open_values(arch.get(choice.parent or ""))
            assert abs(arch[choice.name] - wanted) == min(abs(value - wanted) for value in open_values)


@pytest.mark.parametrize(
    ("allowed", "wanted", "nearest"),
    [((5, 7), 3, 5), ((5, 7), 7, 7), ((3, 5), 7, 5), ((3, 7), 5, 3), ((3, 5, 7), 5, 5)],
)
def test_a_value_that_is_not_open_becomes_the_nearest(allowed: tuple[int, ...], wanted: int, nearest: int) -> None:
    """Of two as near, the smaller."""
    kernel = Choice(name="s.kernel", values=(3, 5, 7), parent="s.depth", allowed={1: allowed})
    space = SearchSpace((Choice(name="s.depth", values=(1,)), kernel))
    genes = {"s.depth": 0, "s.kernel": kernel.values.index(wanted)}
    assert decode(space, genes)["s.kernel"] == nearest


def test_features_are_one_hot_with_absent_and_log_macs(small) -> None:  # type: ignore[no-untyped-def]
    """Each choice has one 1: of 1 depth and 4 block choices, so 5 ones; different subnets differ."""
    archs = list(small.everything())
    seen = features(small.COST, archs)
    assert seen.shape == (42, 3 + 2 * (3 + 4) + 1)
    assert (seen[:, :-1].sum(axis=1) == 5).all()
    assert set(np.unique(seen[:, :-1])) == {0.0, 1.0}
    assert len(np.unique(seen[:, :-1], axis=0)) == 42
    assert seen[:, -1] == pytest.approx([np.log(small.COST(arch).macs) for arch in archs])
