"""Genes mean architectures, and features tell architectures apart."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainonce.models import MobileNetV3
from trainonce.search.genome import decode, encode, features
from trainonce.space import SearchSpace


@pytest.fixture(scope="module")
def net(make_net: Callable[..., MobileNetV3]) -> MobileNetV3:
    return make_net()


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
    coupled = (
        net.space.couple("expand_ratio", "depth") if data.draw(st.booleans()) and _couples(net.space) else net.space
    )
    genes = {c.name: data.draw(st.integers(0, len(c.values) - 1)) for c in coupled.choices}
    arch = decode(coupled, genes)
    assert arch in coupled
    for choice in coupled.choices:
        if choice.name in arch and choice.values[genes[choice.name]] in choice.open_values(
            arch.get(choice.parent or "")
        ):
            assert arch[choice.name] == choice.values[genes[choice.name]], "a gene that is open counts"


def _couples(space: SearchSpace) -> bool:
    return len(space.matching("expand_ratio")[0].values) == len(space.matching("depth")[0].values)


def test_a_value_that_is_not_open_becomes_the_nearest(small) -> None:  # type: ignore[no-untyped-def]
    restricted = small.SPACE.restrict({"kernel": [5]})
    genes = {choice.name: 0 for choice in restricted.choices}
    assert decode(restricted, genes)["s.b1.kernel"] == 5


def test_features_are_one_hot_with_absent_and_log_macs(small) -> None:  # type: ignore[no-untyped-def]
    """Each choice has one 1: of 1 depth and 4 block choices, so 5 ones; different subnets differ."""
    archs = list(small.everything())
    seen = features(small.COST, archs)
    assert seen.shape == (42, 3 + 2 * (3 + 4) + 1)
    assert (seen[:, :-1].sum(axis=1) == 5).all()
    assert set(np.unique(seen[:, :-1])) == {0.0, 1.0}
    assert len(np.unique(seen[:, :-1], axis=0)) == 42
    assert seen[:, -1] == pytest.approx([np.log(small.COST(arch).macs) for arch in archs])
