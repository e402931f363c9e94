"""Fine-tuning: the steps are those of a loop written here by hand; the best epoch is kept; same seed, same bits."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score
from trainonce.models import MobileNetV3
from trainonce.nn.fast import with_fast_blocks
from trainonce.nn.plain import PlainNetwork
from trainonce.recipes import Colour, Crop, Flip
from trainonce.subnets import describe_subnet
from trainonce.subnets.card import model_card
from trainonce.subnets.finetune import (
    LEAST_STEPS,
    Finetuned,
    FinetunePace,
    FinetuneProgress,
    FinetuneSettings,
    described_finetuned,
    finetune,
    finetuning_pace,
    largest_as_teacher,
)

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
CALIBRATION = EvaluateSettings(calibration_images=24, calibration_batch=24)


@pytest.fixture(scope="module")
def net(make_net: MakeNet) -> MobileNetV3:
    """Without dropout; its statistics let the images through."""
    made, x = make_net(seed=3, dropout=0.0), torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(5):
            made.train()(x, made.space.largest())
    return made.eval()


def taken_out(net: MobileNetV3) -> PlainNetwork:
    return net.extract(net.space.smallest())


def finished(*arguments: Any, **keywords: Any) -> Finetuned:
    result = finetune(*arguments, **keywords)
    assert result is not None
    return result


def parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.named_parameters()}


class TestSteps:
    @pytest.mark.parametrize(("distill", "balance"), [(False, 0.0), (True, 0.0), (False, 1.0)])
    def test_against_a_loop_by_hand(self, net: MobileNetV3, make_data: MakeData, distill: bool, balance: float) -> None:
        """Batches of all the images, so that their order is of no account: plain torch, its formulas written out."""
        data = make_data(train=16)
        evaluator = Evaluator(data, settings=CALIBRATION)
        settings = FinetuneSettings(
            epochs=3,
            lr=0.05,
            batch_size=64,
            weight_decay=1e-2,
            class_balance=balance,
            distill=distill,
            distillation_weight=0.7,
            seed=1,
        )
        teacher = evaluator.recalibrated(net, net.space.largest())
        result = finished(taken_out(net), evaluator, settings, teacher=largest_as_teacher(net, evaluator))

        network, x = taken_out(net).train(), (data.train.images.float() / 255 - 0.4) / 0.3
        momenta = {name: torch.zeros_like(tensor) for name, tensor in network.named_parameters()}
        weights = []
        for step in range(3):
            lr = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 3))
            network.zero_grad()
            logits = network(x)
            loss_B = -logits.log_softmax(1)[range(16), data.train.labels]
            loss = loss_B.mean()
            if balance:  # each class has the same part
                loss = torch.stack([loss_B[data.train.labels == k].mean() for k in range(3)]).mean()
            if distill:
                taught = teacher(x).detach()
                probabilities = taught.exp() / taught.exp().sum(1, keepdim=True)
                loss = loss - 0.7 * (probabilities * logits.log_softmax(1)).sum(1).mean()
            loss.backward()
            with torch.no_grad():
                for name, tensor in network.named_parameters():
                    assert tensor.grad is not None
                    grad = tensor.grad + (1e-2 * tensor if tensor.ndim > 1 and not name.endswith("bias") else 0)
                    momenta[name] = 0.9 * momenta[name] + grad
                    tensor.sub_(lr * (grad + 0.9 * momenta[name]))
            weights.append(parameters(network))
            assert result.epochs[step].loss == pytest.approx(loss.detach().item(), rel=1e-4)
        for name, tensor in result.network.named_parameters():
            torch.testing.assert_close(tensor, weights[result.epoch - 1][name], rtol=1e-3, atol=1e-5)
        assert not torch.equal(weights[0]["stem.0.weight"], weights[1]["stem.0.weight"])

    @pytest.mark.parametrize("which", ["smallest", "largest"])
    def test_the_blocks_gradients_are_the_plain_ones(self, net: MobileNetV3, which: str) -> None:
        """And their running statistics; float64 through the plain blocks is the truth."""
        arch = net.space.smallest() if which == "smallest" else net.space.largest()
        x = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(4))
        y = torch.arange(12) % 3
        fast = with_fast_blocks(net.extract(arch), trained=True).train()
        exact = net.extract(arch).double().train()
        F.cross_entropy(fast(x.contiguous(memory_format=torch.channels_last)), y).backward()  # type: ignore[no-untyped-call]
        F.cross_entropy(exact(x.double()), y).backward()  # type: ignore[no-untyped-call]
        expected = dict(exact.named_parameters())
        for name, tensor in fast.named_parameters():
            assert tensor.grad is not None, name
            reference = expected[name].grad
            assert reference is not None
            torch.testing.assert_close(tensor.grad.double(), reference, rtol=1e-3, atol=2e-5, msg=name)
        statistics = dict(exact.named_buffers())
        for name, buffer in fast.named_buffers():
            if "running" in name:
                torch.testing.assert_close(buffer.double(), statistics[name], rtol=1e-4, atol=1e-5)


class TestOutcome:
    @pytest.fixture
    def evaluator(self, make_data: MakeData) -> Evaluator:
        augmentation = (Crop(scale=(0.6, 1.0)), Flip(), Colour(brightness=0.2))
        return Evaluator(make_data(augmentation=augmentation), settings=CALIBRATION)

    def test_follows_from_the_seed_alone(self, make_net: MakeNet, evaluator: Evaluator) -> None:
        network = taken_out(make_net(seed=5, dropout=0.2).eval())
        before = copy.deepcopy(network.state_dict())
        torch.manual_seed(0)
        state = torch.get_rng_state()
        settings = FinetuneSettings(epochs=2, batch_size=8, seed=7)
        one = finished(network, evaluator, settings)
        assert torch.equal(torch.get_rng_state(), state), "the global generator was drawn from"
        torch.manual_seed(99)
        again = finished(network, evaluator, settings)
        other = finished(network, evaluator, settings.model_copy(update={"seed": 8}))
        assert all(torch.equal(t, again.network.state_dict()[k]) for k, t in one.network.state_dict().items())
        assert (one.epochs, one.before, one.after) == (again.epochs, again.before, again.after)
        assert not torch.equal(*(r.network.get_parameter("classifier.weight") for r in (one, other)))
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        assert not network.training
        assert not one.network.training
        assert all(type(m) is type(plain) for m, plain in zip(one.network.modules(), network.modules(), strict=True)), (
            "plain, and only plain"
        )

    def test_learns_what_can_be_learned(self, net: MobileNetV3, make_data: MakeData) -> None:
        """Images whose brightness is their class."""
        data = make_data(train=96, calibrate=48, validate=48)
        for split in (data.train, data.calibrate, data.validate):
            split.images.copy_((split.images // 8 + 80 * split.labels[:, None, None, None]).to(torch.uint8))
        evaluator = Evaluator(data, settings=CALIBRATION)
        result = finished(taken_out(net), evaluator, FinetuneSettings(epochs=4, lr=0.05, batch_size=16))
        assert result.epochs[-1].loss < 0.5 * result.epochs[0].loss
        assert result.after.top1 > 90 > result.before.top1
        assert result.after.loss < result.before.loss

    @pytest.mark.parametrize(
        ("scores", "best"),
        [([(50, 1), (70, 1), (60, 0.1)], 3), ([(50, 1), (60, 0.5), (50, 0.5)], 2), ([(9, 1), (9, 1), (9, 1)], 1)],
    )
    def test_the_best_epoch_on_validate_is_kept(
        self, net: MobileNetV3, make_data: MakeData, scores: list[tuple[float, float]], best: int
    ) -> None:
        class Scripted(Evaluator):
            seen: list[dict[str, Tensor]]

            def score_recalibrated(self, plain: nn.Module) -> Score:
                self.seen.append(parameters(plain))
                top1, loss = scores[len(self.seen) - 1]
                return Score(top1=top1, loss=loss, images=30)

        evaluator = Scripted(make_data(), settings=CALIBRATION)
        evaluator.seen = []
        result = finished(taken_out(net), evaluator, FinetuneSettings(epochs=3, batch_size=16))
        assert result.epoch == best
        for number, seen in enumerate(evaluator.seen, start=1):
            same = [torch.equal(tensor, seen[name]) for name, tensor in result.network.named_parameters()]
            assert all(same) == (number == best)
        assert result.after == Evaluator(make_data(), settings=CALIBRATION).score(result.network)

    def test_stops_when_told(self, net: MobileNetV3, evaluator: Evaluator) -> None:
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            return asked > 6

        assert (
            finetune(taken_out(net), evaluator, FinetuneSettings(epochs=9, batch_size=8), should_stop=should_stop)
            is None
        )
        assert asked == 7

    def test_progress(self, net: MobileNetV3, evaluator: Evaluator) -> None:
        seen: list[FinetuneProgress] = []
        result = finished(taken_out(net), evaluator, FinetuneSettings(epochs=6, batch_size=8), on_progress=seen.append)
        assert [at.step for at in seen] == [20, 24]
        assert {at.steps for at in seen} == {24}
        assert seen[-1].epoch == 6
        assert seen[-1].seconds_left == 0
        assert result.seconds > 0

    def test_an_estimate_changes_nothing(self, net: MobileNetV3, evaluator: Evaluator) -> None:
        network = taken_out(net)
        before = copy.deepcopy(network.state_dict())
        pace = finetuning_pace(network, evaluator, FinetuneSettings(epochs=1, batch_size=8))
        assert pace.per_epoch == 4
        assert 0 < pace.seconds(1) < pace.seconds(1000) / 10
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    @pytest.mark.parametrize(("epochs", "steps", "looks"), [(1.5, 6, 2), (0.5, 2, 1), (0.01, 1, 1)])
    def test_the_last_epoch_may_be_cut_short(
        self, net: MobileNetV3, evaluator: Evaluator, epochs: float, steps: int, looks: int
    ) -> None:
        """Before each step it is asked whether to stop."""
        asked, seen = list[None](), list[FinetuneProgress]()
        settings = FinetuneSettings(epochs=epochs, batch_size=8)
        result = finished(
            *(taken_out(net), evaluator, settings),
            on_progress=seen.append,
            should_stop=lambda: bool(asked.append(None)),  # type: ignore[func-returns-value]
        )
        assert len(asked) == steps
        assert [(at.step, at.steps, at.epoch, at.seconds_left) for at in seen] == [(steps, steps, steps / 4, 0)]
        assert [one.epoch for one in result.epochs] == list(range(1, looks + 1))


@given(step=st.integers(1, 9), scoring=st.integers(0, 30), per_epoch=st.integers(1, 40), seconds=st.integers(0, 1000))
def test_as_many_epochs_as_fit(step: int, scoring: int, per_epoch: int, seconds: int) -> None:
    """Of all numbers of steps, tried one by one; a last part of few steps is not worth its scoring."""
    pace = FinetunePace(step=step, scoring=scoring, per_epoch=per_epoch)

    def takes(steps: int) -> int:
        return steps * step + scoring * (-(-steps // per_epoch) + 2)

    worth = (n for n in range(1, seconds + 1) if n % per_epoch == 0 or n % per_epoch >= LEAST_STEPS)
    most = max((n for n in worth if takes(n) <= seconds), default=0)
    assert round(pace.epochs_within(seconds) * per_epoch) == most
    assert not most or pace.seconds(most / per_epoch) == takes(most)


class TestRefuses:
    def test_a_loss_that_is_not_finite(self, net: MobileNetV3, make_data: MakeData) -> None:
        evaluator = Evaluator(make_data(), settings=CALIBRATION)
        with pytest.raises(RunError, match=r"the loss is (nan|inf): try a lower learning rate; nothing was written"):
            finetune(taken_out(net), evaluator, FinetuneSettings(epochs=3, lr=1e30, batch_size=8))

    def test_a_network_that_has_no_score(self, net: MobileNetV3, make_data: MakeData) -> None:
        """Training by batch statistics would go well, and only what is written at the end be impossible."""
        network = taken_out(net)
        for name, statistic in network.named_buffers():
            if name.endswith("running_mean"):
                statistic.fill_(float("inf"))
        evaluator = Evaluator(make_data(), settings=CALIBRATION)
        with pytest.raises(RunError, match="the scores are not finite: the loss on validate is nan"):
            finetune(network, evaluator, FinetuneSettings(epochs=1, batch_size=8))

    def test_no_teacher(self, net: MobileNetV3, make_data: MakeData) -> None:
        evaluator = Evaluator(make_data(), settings=CALIBRATION)
        with pytest.raises(UserError, match="distillation needs a teacher"):
            finetune(taken_out(net), evaluator, FinetuneSettings(epochs=1, distill=True))

    @pytest.mark.parametrize("values", [{"epochs": 0}, {"epochs": 1, "lr": 0}, {"epochs": 1, "batch_size": 1}, {}])
    def test_settings(self, values: dict[str, Any]) -> None:
        with pytest.raises(UserError, match="the command line: "):
            FinetuneSettings.parse(values, where="the command line")


@pytest.mark.parametrize(("after", "better"), [((40.0, 0.9), True), ((60.0, 1.1), False), ((60.0, 1.0), False)])
def test_better_is_less_loss_whatever_top1_says(net: MobileNetV3, after: tuple[float, float], better: bool) -> None:
    before, found = (Score(top1=top1, loss=loss, images=30) for top1, loss in ((50.0, 1.0), after))
    result = Finetuned(network=net, epoch=1, before=before, after=found, epochs=(), seconds=1.0)
    assert result.better == better


def test_the_description_says_where_it_comes_from(net: MobileNetV3, make_data: MakeData) -> None:
    data, arch = make_data(), net.space.smallest()
    evaluator = Evaluator(data, settings=CALIBRATION)
    scores = [Score(top1=top1, loss=1.0, images=30) for top1 in (40.0, 60.0)]
    settings = FinetuneSettings(epochs=1, distill=True)
    result = Finetuned(network=net.extract(arch), epoch=1, before=scores[0], after=scores[1], epochs=(), seconds=1.0)
    described = describe_subnet(net, arch, data) | {
        "sha256": {"model.safetensors": "f00d"},
        "scores": {"validate": vars(scores[0])},
        "trained": {"run": "/runs/a", "recipe": "rss"},
    }
    for generation in range(2):
        described = described_finetuned(
            described, result, evaluator, settings, tests=(scores[0], scores[1]), run="/runs/a", provenance={}
        )
        how = json.loads(json.dumps(described.to_json()))["trained"]["finetuned"]
        assert how["from_sha256"] == "f00d"
        assert json.dumps(how["settings"]) == json.dumps(settings.model_dump()), "in the settings' order"
        assert how["before"]["test"]["top1"] == 40
        assert described.to_json()["scores"]["test"]["top1"] == 60
        assert (how["earlier"] is None) == (generation == 0)
        assert described.sha256 is None
        described |= {"sha256": {"model.safetensors": "f00d"}}
    assert described.to_json()["trained"]["recipe"] == "rss"
    assert "distilled from the supernet's largest network; top-1 on validate 40.00% before" in model_card(described)
