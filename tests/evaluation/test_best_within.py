"""Which of the scored subnets is taken out under a budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.lines import a_score

from trainonce.errors import UserError
from trainonce.evaluation.population import best_within
from trainonce.run.lines import SubnetScore

PAIRS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 8)), min_size=1, max_size=25)
"""MACs and loss; parameters are twice the MACs."""


@given(pairs=PAIRS, most_macs=st.none() | st.integers(0, 13), most_params=st.none() | st.integers(0, 26))
def test_against_a_plain_search(pairs: list[tuple[int, int]], most_macs: int | None, most_params: int | None) -> None:
    def fits(line: SubnetScore) -> bool:
        return (most_macs is None or line.macs <= most_macs) and (most_params is None or line.params <= most_params)

    lines = [a_score(arch=f"a{i}", macs=m, params=2 * m, loss=loss) for i, (m, loss) in enumerate(pairs)]
    fitting = [
        (loss, m)
        for m, loss in pairs
        if (most_macs is None or m <= most_macs) and (most_params is None or 2 * m <= most_params)
    ]
    if fitting:
        best = best_within(lines, fits)
        assert (best.loss, best.macs) == min(fitting)
    else:
        with pytest.raises(UserError, match="no evaluated subnet fits the budget; the smallest of those has"):
            best_within(lines, fits)


def test_the_loss_decides_not_top1() -> None:
    sure = a_score(arch="sure", top1=80.0, loss=0.5)
    assert best_within([sure, a_score(arch="lucky", top1=81.0, loss=0.6)]) == sure


def test_nothing_evaluated() -> None:
    with pytest.raises(UserError, match="no subnet has been evaluated yet: run `trainonce evaluate`"):
        best_within([])
