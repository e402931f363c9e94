"""Scoring in chunks: what a scoring says does not depend on the process it is in."""

import random
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainonce.data import DataSet
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, SplitName
from trainonce.evaluation.scoring import CHUNK, Scoring, chunks_of
from trainonce.models import MobileNetV3
from trainonce.space import Architecture

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]


@given(count=st.integers(0, 300), workers=st.integers(1, 70))
def test_pieces(count: int, workers: int) -> None:
    archs = [Architecture((("stage1.depth", number),)) for number in range(count)]
    random.Random(count).shuffle(archs)
    chunks = chunks_of(archs, workers)
    assert [arch for chunk in chunks for arch in chunk] == sorted(archs, key=str)
    sizes = [len(chunk) for chunk in chunks]
    assert sizes == sorted(sizes, reverse=True)
    assert all(1 <= size <= CHUNK for size in sizes)
    assert count < 4 * workers or len(chunks) >= 4 * workers


@pytest.mark.parametrize("split", ["validate", "test"])
def test_it_travels(make_net: MakeNet, make_data: MakeData, split: SplitName) -> None:
    net, data = make_net(seed=3).eval(), make_data(train=2000)
    evaluator = Evaluator(data, split, EvaluateSettings(calibration_images=20, seed=5))
    scoring = Scoring(net, evaluator)
    content = bytes(ForkingPickler.dumps(scoring))
    arrived = ForkingPickler.loads(content)
    chunk = (net.space.smallest(), net.space.largest())
    assert arrived()(chunk) == scoring()(chunk) == [evaluator(net, arch) for arch in chunk]
    weights = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    assert len(content) < weights + 120_000  # of which headers; the 2,000 training images stay behind
    assert arrived.evaluator.settings == evaluator.settings
    assert not arrived.net.training
