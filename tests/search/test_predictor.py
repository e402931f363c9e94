"""The predictor's gate: it opens for accuracy that follows from the architecture, and not for noise."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trainonce.models import MobileNetV3
from trainonce.run.directory import RunDirectory
from trainonce.search.predictor import GOOD_TAU, LEAST_SUBNETS, accuracy_of, learn
from trainonce.space import Architecture


@pytest.fixture(scope="module")
def net(make_net: Callable[..., MobileNetV3]) -> MobileNetV3:
    return make_net()


def drawn(net: MobileNetV3, count: int, seed: int) -> list[Architecture]:
    rng = random.Random(seed)
    return list(dict.fromkeys(net.space.sample(rng) for _ in range(count)))


def additive(net: MobileNetV3, seed: int) -> Callable[[Architecture], float]:
    rng = random.Random(seed)
    worth = {(choice.name, value): rng.gauss(0, 1) for choice in net.space.choices for value in choice.values}
    return lambda arch: 60 + sum(worth[pair] for pair in arch.pairs)


def test_it_opens_for_what_can_be_learnt(net: MobileNetV3) -> None:
    truth = additive(net, 0)
    predictor, report = learn(net.cost, {arch: truth(arch) for arch in drawn(net, 120, 1)}, seed=3)
    assert predictor is not None
    assert report.used
    assert report.held_out is not None
    assert report.held_out.tau is not None
    assert report.held_out.tau >= GOOD_TAU
    assert report.mean_alone is not None
    assert report.held_out.mean_error < report.mean_alone / 2
    unseen = drawn(net, 60, 2)
    found = accuracy_of(predictor(unseen), [truth(arch) for arch in unseen])
    assert found.tau is not None
    assert abs(found.tau - report.held_out.tau) < 0.15, "the cross-validated figure holds for other subnets"


def test_it_stays_shut_for_noise(net: MobileNetV3) -> None:
    rng = random.Random(5)
    predictor, report = learn(net.cost, {arch: rng.gauss(60, 2) for arch in drawn(net, 120, 1)}, seed=3)
    assert predictor is None
    assert not report.used
    assert report.held_out is not None
    assert abs(report.held_out.tau or 0) < 0.25
    assert "so it is not used: true scores are" in report.why


def test_it_is_judged_by_subnets_within_the_limits(net: MobileNetV3) -> None:
    """Scores that follow from MACs above a limit and are noise below: a predictor of all is none for those below."""
    rng = random.Random(5)
    archs = drawn(net, 300, 1)
    limit = sorted(net.cost(arch).macs for arch in archs)[100]
    scores = {a: net.cost(a).macs / limit * 10 if net.cost(a).macs > limit else rng.gauss(5, 1) for a in archs}
    _, of_all = learn(net.cost, scores, seed=3)
    assert of_all.used
    predictor, report = learn(net.cost, scores, seed=3, feasible=lambda arch: net.cost(arch).macs <= limit)
    assert (predictor, report.used, report.subnets) == (None, False, len(archs))
    assert report.held_out is not None
    assert report.held_out.subnets == 101


def test_with_few_scores_or_equal_ones_there_is_nothing_to_learn(net: MobileNetV3) -> None:
    few = dict.fromkeys(drawn(net, LEAST_SUBNETS - 1, 1), 1.0)
    predictor, report = learn(net.cost, few, seed=0)
    assert (predictor, report.held_out, report.used) == (None, None, False)
    assert f"{len(few)} scores within the limits are too few to judge by (at least {LEAST_SUBNETS})" in report.why
    predictor, report = learn(net.cost, dict.fromkeys(drawn(net, 40, 1), 1.0), seed=0)
    assert predictor is None
    assert "all scores are the same" in report.why


def test_the_order_of_scores_changes_nothing(net: MobileNetV3) -> None:
    truth = additive(net, 0)
    archs = drawn(net, 40, 1)
    one, _ = learn(net.cost, {arch: truth(arch) for arch in archs}, seed=3)
    other, _ = learn(net.cost, {arch: truth(arch) for arch in reversed(archs)}, seed=3)
    assert one is not None
    assert other is not None
    assert one(archs) == other(archs)


@pytest.mark.filterwarnings("ignore::trainonce.records.UncheckedWarning")  # they were made before sums
def test_of_the_committed_results_it_learns() -> None:
    """150 subnets of the CIFAR-10 run of docs/results.md, with the figures that docs/searching.md says."""
    run = RunDirectory(Path(__file__).parents[2] / "docs" / "results" / "cifar10-rss")
    net = run.build_supernet()
    _, report = learn(net.cost, {net.space.parse(line.arch): line.top1 for line in run.population()}, seed=0)
    assert report.used
    assert report.held_out is not None
    assert report.held_out.tau == pytest.approx(0.69, abs=0.05)
    assert report.held_out.mean_error == pytest.approx(0.69, abs=0.05)
    assert report.mean_alone == pytest.approx(1.43, abs=0.05)
    assert report.macs_alone_tau == pytest.approx(0.08, abs=0.01)


def test_accuracy_by_hand() -> None:
    """Of the pairs of 1, 2, 3 against 1, 3, 2 two are ordered alike and one not: tau (2 - 1) / 3."""
    found = accuracy_of([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    assert found.tau == pytest.approx(1 / 3)
    assert found.rho == pytest.approx(np.corrcoef([1, 2, 3], [1, 3, 2])[0, 1])
    assert found.mean_error == pytest.approx(2 / 3)
    assert accuracy_of([1.0, 1.0], [1.0, 2.0]).tau is None
