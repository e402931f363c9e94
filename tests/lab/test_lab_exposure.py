"""Selection bias against sums by hand."""

import pytest

from trainonce.errors import UserError
from trainonce.lab.measures.exposure import selection_bias
from trainonce.run.exposure import Exposure
from trainonce.space import Choice, SearchSpace

SPACE = SearchSpace(
    (
        Choice(name="stage1.depth", values=(1, 2)),
        Choice(name="stage1.block1.width", values=(3, 6)),
        Choice(name="stage1.block2.width", values=(3, 6), parent="stage1.depth", allowed={2: (3, 6)}),
    )
)


class TestSelectionBias:
    def test_known_cases(self) -> None:
        recorder = Exposure(SPACE, 0, 100)
        recorder.add([SPACE.smallest()] * 4, [0.5, 0.5, 1.5, 99.5], 1.0)
        table = recorder.table()
        alike = selection_bias(table, [0.1, 0.2, 1.1, 100])
        assert (alike.total_variation, alike.jensen_shannon) == (0, 0)
        disjoint = selection_bias(table, [50, 60])
        assert (disjoint.total_variation, disjoint.jensen_shannon) == (1, 1)
        assert selection_bias(table, [0.5, 0.5, 0.5, 0.5]).total_variation == 0.5
        with pytest.raises(UserError, match="two distributions"):
            selection_bias(table, [])
