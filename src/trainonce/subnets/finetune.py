"""Fine-tuning: train one extracted subnet on its own, for those who want the last point of accuracy.

Ordinary training of a plain network from the weights that it was taken out with: SGD on a cosine or AdamW on one
cycle, the run's training images and augmentation, if wanted also a teacher's output (Hinton 2015, arXiv 1503.02531;
OFA, arXiv 1908.09791, section 3.3). What a step draws follows from the seed and the step alone, as in
`trainonce.training.loop`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from typing import Any, Literal, Self, final

import torch
from pydantic import Field
from torch import Tensor, nn

from trainonce.data.splits import Batch
from trainonce.errors import NotFiniteError, UserError
from trainonce.evaluation.evaluator import Evaluator, Score, finite, recalibrate
from trainonce.files import fits_record
from trainonce.models import Supernet
from trainonce.nn.dropout import DrawnMasks, batch_dropouts, drawing
from trainonce.nn.fast import with_fast_blocks
from trainonce.nn.kinds import spec_of
from trainonce.parallel.distributed import BatchShard
from trainonce.recipes import LONGEST_EPOCHS, DistillationName, Phase, Recipe, timetable
from trainonce.settings import Settings, refuse_subclass
from trainonce.subnets.description import SubnetDescription
from trainonce.training.batches import generator_on, shuffled
from trainonce.training.losses import class_weights, distillation, label_loss
from trainonce.training.optimizers import optimizer_for
from trainonce.training.step_sums import StepSums
from trainonce.training.teacher import frozen

LOG_EVERY = 20
"""Steps between two reports of progress."""
TIMED_STEPS = 4
"""Steps that an estimate of time is made from, after one that warms up."""
LEAST_STEPS = 8
"""A part of an epoch of fewer steps is not worth its scoring."""
SCORINGS_BESIDE = 2
"""Scorings of `finetune` beside those after each epoch: before the first, and of the network that is kept."""

ADAMW_LR, ADAMW_DECAY = 1e-3, 0.02


@final
class FinetuneSettings(Settings):
    """How a subnet is fine-tuned."""

    epochs: float = Field(gt=0, le=LONGEST_EPOCHS)
    """Passes over the training images, the last perhaps cut short; one cosine goes over all of them."""
    lr: float = Field(0.01, gt=0)
    """The highest learning rate, for this batch size."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """What makes steps of gradients, as in a recipe."""
    schedule: Literal["cosine", "one-cycle"] = "cosine"
    """How the learning rate goes on, as in a recipe's phase."""
    batch_size: int = Field(64, ge=2)
    """Images in a step; a ragged last batch is left out of the epoch."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Nesterov momentum of "sgd"."""
    weight_decay: float = Field(3e-5, ge=0)
    """Weight decay; none on batch norm and biases."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the loss against the labels."""
    class_balance: float = Field(0.0, ge=0, le=1)
    """How far rare classes make up for their number in the loss against the labels, as in a recipe."""
    distill: bool = False
    """Whether the teacher's output is learned beside the labels."""
    distillation: DistillationName = "soft"
    """The loss against the teacher, as in a recipe's phase."""
    distillation_weight: float = Field(1.0, gt=0)
    """How much the loss against the teacher counts beside that against the labels."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the images' order, their augmentation and dropout."""

    @classmethod
    def by(cls, optimizer: str, *, lr: float | None = None, where: str = "the options", **fields: Any) -> Self:
        """Settings that suit an optimizer: for AdamW one cycle up to 0.001 and a weight decay of 0.02.

        `lr` and other fields take the place of these. Raises `UserError` for what is none.
        """
        suiting: dict[str, Any] = {}
        if optimizer == "adamw":
            suiting = {"lr": ADAMW_LR, "schedule": "one-cycle", "weight_decay": ADAMW_DECAY}
        rate = {} if lr is None else {"lr": lr}
        return cls.parse({"optimizer": optimizer, **suiting, **rate, **fields}, where=where)


@dataclass(frozen=True, kw_only=True)
class FinetuneProgress:
    """Where fine-tuning stands: `loss` and `top1` (percent, on augmented images) are since the report before."""

    step: int
    steps: int
    epoch: float
    lr: float
    loss: float
    top1: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What an epoch came to: the mean training loss, and the score on the evaluator's split after it."""

    epoch: int
    """Counted from 1."""
    loss: float
    score: Score


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """The network of the epoch that is kept, recalibrated, in evaluation mode, and what all of them came to."""

    network: nn.Module
    epoch: int
    before: Score
    after: Score
    epochs: tuple[Epoch, ...]
    seconds: float

    @property
    def better(self) -> bool:
        """Whether it has less loss on validate than the network that it began with.

        Each by the statistics of batch norm that it would be used with. By top-1 that would be told of too few images:
        a network that was the best of many, as those are that `fit` fine-tunes, has had luck there (docs/levers.md).
        """
        return self.after.loss < self.before.loss


def finetune(
    network: nn.Module,
    evaluator: Evaluator,
    settings: FinetuneSettings,
    *,
    teacher: nn.Module | None = None,
    on_progress: Callable[[FinetuneProgress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Finetuned | None:
    """Train a copy of `network` on the evaluator's training images; None where `should_stop` ended it.

    After each epoch the batch norms of a copy are recalibrated and it is scored on the evaluator's split, which must
    be validate; the epoch of the least loss is kept, of equals the one of highest top-1. With `settings.distill`
    `teacher` is a frozen network on the device of `network` (see `largest_as_teacher`). Nothing is written. Raises
    `UserError` where there is no teacher to learn from, and `RunError` where a loss or score is not finite.
    """
    assert evaluator.split_name == "validate", "the test split chooses nothing"
    refuse_subclass(settings, FinetuneSettings)
    began = time.monotonic()
    loop = _FinetuneLoop(network, evaluator, settings, teacher)
    before = finite(evaluator.score(_copy(network)), "validate")
    epochs: list[Epoch] = []
    kept: dict[str, Tensor] = {}
    for number in range(1, loop.epochs + 1):
        loss = loop.epoch(number, on_progress, should_stop)
        if loss is None:
            return None
        score = finite(evaluator.score_recalibrated(loop.network()), "validate")
        found = Epoch(epoch=number, loss=loss, score=score)
        epochs.append(found)
        if found is max(epochs, key=_goodness):
            kept = loop.network().state_dict()
    best = max(epochs, key=_goodness)
    chosen = _copy(network)
    chosen.load_state_dict(kept)
    recalibrate(chosen, evaluator.calibration_batches)
    return Finetuned(
        network=chosen,
        epoch=best.epoch,
        before=before,
        after=evaluator.score(chosen),
        epochs=tuple(epochs),
        seconds=time.monotonic() - began,
    )


def largest_as_teacher(net: Supernet, evaluator: Evaluator) -> nn.Module:
    """The supernet's largest network, recalibrated and frozen, in evaluation mode."""
    return frozen(evaluator.recalibrated(net, net.space.largest()))


@dataclass(frozen=True, kw_only=True)
class FinetunePace:
    """How long fine-tuning takes, in seconds."""

    step: float
    scoring: float
    """Of recalibrating and scoring, after each epoch."""
    per_epoch: int
    """Steps in an epoch."""

    def seconds(self, epochs: float) -> float:
        """About how long so many epochs take: their steps, a scoring after each, before the first and at the end."""
        steps = max(1, round(epochs * self.per_epoch))
        return self.step * steps + self.scoring * (math.ceil(steps / self.per_epoch) + SCORINGS_BESIDE)

    def epochs_within(self, seconds: float) -> float:
        """The most epochs that take so long, the last perhaps cut short to `LEAST_STEPS` or more; 0 where none does."""
        left = seconds - self.scoring * SCORINGS_BESIDE
        whole = max(0, int(left / (self.step * self.per_epoch + self.scoring)))
        left -= whole * (self.step * self.per_epoch + self.scoring)
        steps = int((left - self.scoring) / self.step)
        return min(whole + (steps / self.per_epoch if steps >= LEAST_STEPS else 0), LONGEST_EPOCHS)


def finetuning_pace(
    network: nn.Module, evaluator: Evaluator, settings: FinetuneSettings, *, teacher: nn.Module | None = None
) -> FinetunePace:
    """How fast `finetune` is: a few steps, with loading their images, and one scoring are timed, on copies."""
    loop = _FinetuneLoop(network, evaluator, settings, teacher)
    rows = islice(cycle(loop.rows(1)), 1 + TIMED_STEPS)
    with closing(evaluator.data.train.batches(rows)) as batches:
        loop.step(0, next(batches))
        began = time.monotonic()
        loss = sum(loop.step(0, batch)[0] for batch in batches)
        float(loss)  # waits for the device
    step = (time.monotonic() - began) / TIMED_STEPS
    began = time.monotonic()
    evaluator.score_recalibrated(loop.network())
    return FinetunePace(step=step, scoring=time.monotonic() - began, per_epoch=loop.per_epoch)


def described_finetuned(
    description: SubnetDescription,
    result: Finetuned,
    evaluator: Evaluator,
    settings: FinetuneSettings,
    *,
    tests: tuple[Score, Score] | None = None,
    run: str,
    provenance: Mapping[str, Any],
) -> SubnetDescription:
    """The description of the fine-tuned subnet: that of the one it came from, with its own scores and how it was made.

    `tests` are the scores on the test split before and after. The figures of each class, which are of the weights of
    before, are left out.
    """
    before, after = {"validate": asdict(result.before)}, {"validate": asdict(result.after)}
    if tests is not None:
        before["test"], after["test"] = map(asdict, tests)
    sums, trained = description.sha256, description.trained.to_json() if description.trained else {}
    assert sums is not None, "only a subnet that was read can be fine-tuned"
    finetuned = {
        "from_sha256": sums["model.safetensors"],
        "run": run,
        "settings": settings.model_dump(),
        "epoch": result.epoch,
        "before": before,
        "after": after,
        "epochs": [asdict(epoch) for epoch in result.epochs],
        "seconds": round(result.seconds, 1),
        "provenance": dict(provenance),
        "earlier": trained.get("finetuned"),
    }
    return description.without("sha256", "per_class") | {
        "scores": after,
        "recalibrated": evaluator.settings.model_dump(),
        "trained": trained | {"finetuned": finetuned},
    }


def _goodness(epoch: Epoch) -> tuple[float, float]:
    return -epoch.score.loss, epoch.score.top1


def _copy(network: nn.Module) -> nn.Module:
    """A plain network with weights of its own, in evaluation mode, whatever blocks `network` has."""
    with torch.device("meta"):  # initialising would draw from the global generator
        plain = spec_of(network).build()
    plain.load_state_dict({name: t.detach().clone() for name, t in network.state_dict().items()}, assign=True)
    return plain.requires_grad_().eval()


class _FinetuneLoop:
    def __init__(
        self, network: nn.Module, evaluator: Evaluator, settings: FinetuneSettings, teacher: nn.Module | None
    ) -> None:
        if settings.distill and teacher is None:
            raise UserError("distillation needs a teacher to learn from")
        self.data, self.settings = evaluator.data, settings
        self.teacher = teacher if settings.distill else None
        self.device = next(network.parameters()).device
        self.student = with_fast_blocks(_copy(network), trained=True).train()
        self.dropouts = batch_dropouts(self.student)
        labels_N = self.data.train.labels.to(self.device)
        self.class_weights_K = class_weights(labels_N, self.data.num_classes, settings.class_balance)
        phase = Phase(name="fine-tune", epochs=settings.epochs, lr=settings.lr, schedule=settings.schedule)
        recipe = Recipe(
            name="fine-tune",
            about="One subnet.",
            phases=(phase,),
            **settings.model_dump(include={"batch_size", "optimizer", "momentum", "weight_decay"}),
        )
        size = recipe.images_per_step(len(self.data.train))
        self.shard = BatchShard(0, size, size)
        self.per_epoch = recipe.steps_per_epoch(len(self.data.train))
        [self.cosine] = timetable(recipe, self.per_epoch)
        self.steps = self.cosine.steps
        self.epochs = math.ceil(self.steps / self.per_epoch)
        self.optimizer = optimizer_for(self.student, recipe, phase)
        self.began = time.monotonic()

    def network(self) -> nn.Module:
        """The network as it stands: a copy."""
        return _copy(self.student)

    def rows(self, epoch: int) -> Iterator[Tensor]:
        """The rows of an epoch's batches, in an order of its own; the last may have fewer batches."""
        order = shuffled(len(self.data.train), self.settings.seed, "order", epoch).to(self.data.train.labels.device)
        steps = min(self.per_epoch, self.steps - (epoch - 1) * self.per_epoch)
        return iter(torch.split(order[: steps * self.shard.total], self.shard.total))

    def epoch(
        self, epoch: int, on_progress: Callable[[FinetuneProgress], None], should_stop: Callable[[], bool]
    ) -> float | None:
        """Train an epoch, counted from 1, and give its mean loss; None where it was ended."""
        before, recent, whole = (epoch - 1) * self.per_epoch, StepSums(self.device), StepSums(self.device)
        with closing(self.data.train.batches(self.rows(epoch))) as batches:
            for done, batch in enumerate(batches, start=before + 1):
                if should_stop():
                    return None
                loss, hits = self.step(done - 1, batch)
                for sums in (recent, whole):
                    sums.add(loss[None], hits, self.shard.total)
                if done % LOG_EVERY == 0 or done == self.steps:
                    on_progress(self._progress(done, recent))
                    recent = StepSums(self.device)
        mean = whole.mean_loss()
        _refuse_not_finite(mean, min(epoch * self.per_epoch, self.steps))
        return mean

    def step(self, number: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Train step `number`, from 0; gives its loss and how many images were classified correctly, scalars."""
        x_BCHW = self.data.vary(batch.images_BCHW, self._generator("augment", number))
        for group in self.optimizer.param_groups:
            group["lr"] = self.cosine.lr(number)
        self.optimizer.zero_grad()
        with drawing(self.dropouts, DrawnMasks(self._generator("dropout", number), self.shard)):
            logits_BK = self.student(x_BCHW)
        loss = self._loss(logits_BK, batch.labels_B, x_BCHW)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach(), (logits_BK.argmax(1) == batch.labels_B).sum()

    def _loss(self, logits_BK: Tensor, y_B: Tensor, x_BCHW: Tensor) -> Tensor:
        loss = label_loss(logits_BK, y_B, self.class_weights_K, label_smoothing=self.settings.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            teacher_BK = self.teacher(x_BCHW)
        distil = distillation(self.settings.distillation)
        return loss + self.settings.distillation_weight * distil(logits_BK, teacher_BK)

    def _generator(self, *key: int | str) -> torch.Generator:
        return generator_on(self.device, self.settings.seed, *key)

    def _progress(self, done: int, recent: StepSums) -> FinetuneProgress:
        loss = recent.mean_loss()
        _refuse_not_finite(loss, done)
        return FinetuneProgress(
            step=done,
            steps=self.steps,
            epoch=done / self.per_epoch,
            lr=self.cosine.lr(done - 1),
            loss=loss,
            top1=recent.top1(),
            seconds_left=(time.monotonic() - self.began) / done * (self.steps - done),
        )


def _refuse_not_finite(loss: float, step: int) -> None:
    if not fits_record(loss):
        raise NotFiniteError(f"by step {step} the loss is {loss:g}: try a lower learning rate; nothing was written")
