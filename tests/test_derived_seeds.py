"""Seeds that follow from keys."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from trainonce.space import derived_rng, derived_seed

KNOWN_SEED = 8605440082370975677
"""Of (0, "subnets", 2, 1234): runs made today must resume tomorrow."""


def test_known_values() -> None:
    assert derived_seed(0, "subnets", 2, 1234) == KNOWN_SEED
    assert derived_rng(0, "subnets", 2, 1234).random() == random.Random(KNOWN_SEED).random()


def test_keys_do_not_run_into_each_other() -> None:
    keys: list[tuple[int | str, ...]] = [(1, 23), (12, 3), (123,), ("1", 23), ("1", "23"), (1, 23, ""), ()]
    assert len({derived_seed(*key) for key in keys}) == len(keys)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
def test_fits_a_signed_64_bit_seed(key: list[int | str]) -> None:
    assert 0 <= derived_seed(*key) < 2**63
