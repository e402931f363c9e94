"""The exposure of architectures, and selection bias, against sums by hand."""

import random
from collections.abc import Callable

import pytest

from trainonce.cost.macs import Cost, CostModel, CostTerm
from trainonce.errors import UserError
from trainonce.lab.measures.exposure import mean_exposure, selection_bias
from trainonce.models import MobileNetV3
from trainonce.run.exposure import Exposure
from trainonce.space import Choice, SearchSpace

SPACE = SearchSpace(
    (
        Choice(name="stage1.depth", values=(1, 2)),
        Choice(name="stage1.block1.width", values=(3, 6)),
        Choice(name="stage1.block2.width", values=(3, 6), parent="stage1.depth", allowed={2: (3, 6)}),
    )
)


def block(width: int | None) -> Cost:
    return Cost(0, 0 if width is None else 10 * width)


COST = CostModel(
    SPACE,
    (
        CostTerm((), lambda: Cost(0, 40)),
        CostTerm(("stage1.block1.width",), block),
        CostTerm(("stage1.block2.width",), block),
    ),
)


class TestMeanExposure:
    def test_by_hand(self) -> None:
        recorder = Exposure(SPACE, 0, 1)
        recorder.add([SPACE.parse("d1.w3")], [], 1.0)
        recorder.add([SPACE.parse("d2.w6.w3")], [], 2.0)
        table = recorder.table()
        assert mean_exposure(COST, SPACE.parse("d1.w3"), table) == 3.0
        assert mean_exposure(COST, SPACE.parse("d1.w6"), table) == pytest.approx((40 * 3 + 30 * 3 + 30 * 2) / 100)
        by_hand = (40 * 3 + 30 * 3 + 30 * 2 + 30 * 2 + 30 * 0) / 160
        assert mean_exposure(COST, SPACE.parse("d2.w6.w6"), table) == pytest.approx(by_hand)

    def test_on_a_supernet(self, make_net: Callable[..., MobileNetV3]) -> None:
        """Trained alone, an architecture's weights are all active in all steps; a larger one's are less so."""
        net, rng = make_net(), random.Random(0)
        for _ in range(5):
            arch = net.space.sample(rng)
            recorder = Exposure(net.space, 0, 1)
            for lr in (0.5, 0.25):
                recorder.add([arch], [], lr)
            table = recorder.table()
            assert mean_exposure(net.cost, arch, table) == pytest.approx(0.75)
            assert mean_exposure(net.cost, net.space.smallest(), table) == pytest.approx(0.75)
            assert 0 < mean_exposure(net.cost, net.space.largest(), table) < 0.75


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
