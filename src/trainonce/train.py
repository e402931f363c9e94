"""The one training loop. Every strategy is a recipe that it reads; it knows nothing of evaluation.

What step 1234 draws (its subnets, its images' order and augmentation, its dropout) follows from the seed, the
phase and the step alone, so a resumed run goes on as if never stopped and the global generators are left as they were.
A checkpoint of step s holds the state before step s.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce import checkpoint
from trainonce.data import DataSet
from trainonce.data.augment import augment
from trainonce.data.splits import Batch
from trainonce.errors import RunError, UserError
from trainonce.losses import DISTILLATION
from trainonce.models import Supernet
from trainonce.nn.cropping import crop_kernels
from trainonce.recipes import Phase, PhaseSteps, Recipe, phase_at, timetable
from trainonce.run import RunConfig, RunDirectory, provenance
from trainonce.sampling import SubnetDraws
from trainonce.settings import Settings
from trainonce.space import Architecture, SearchSpace, derived_rng, derived_seed


class TrainSettings(Settings):
    """How a run is carried out; the weights do not depend on it, up to the device's rounding."""

    device: str = "cpu"
    """Where the network and the images live: cpu, cuda, cuda:1."""
    checkpoint_every_s: float = Field(60.0, ge=0)
    """Seconds between checkpoints; one is also written at the end and when the run is stopped."""
    log_every: int = Field(20, ge=1)
    """Steps that one line of metrics sums up."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands after a line of metrics."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run."""
    phase: str
    """Name of the phase."""
    epoch: float
    """Passes over the images done, counted by steps."""
    lr: float
    """Learning rate of the last step."""
    loss: float
    """Mean loss of the subnets since the line before."""
    top1: float
    """Percent of the (augmented) training images classified rightly since the line before."""
    macs: int
    """MACs of the last subnet trained."""
    arch: Architecture
    """The last subnet trained."""
    seconds_left: float
    """Estimate from the time the subnets took so far."""


@dataclass
class _Tally:
    """Sums since the last line of metrics. They are saved with the checkpoint."""

    steps: int = 0
    losses: int = 0
    loss_sum: float = 0.0
    images: int = 0
    correct: int = 0


@dataclass
class _State:
    """What changes while training, beside the network's own weights."""

    step: int = 0
    tally: _Tally = field(default_factory=_Tally)
    optimizer: torch.optim.SGD | None = None
    trained_teacher: nn.Module | None = None
    teacher: nn.Module | None = None


def train_supernet(
    net: Supernet,
    recipe: Recipe,
    data: DataSet,
    run: RunDirectory,
    *,
    seed: int = 0,
    resume: bool = False,
    settings: TrainSettings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> bool:
    """Train `net` in place by `recipe`; `run` gets run.json, metrics and checkpoints.

    With `resume` a run that is there goes on from its newest whole checkpoint: bit for bit on the CPU with the same
    number of threads, up to the device's own rounding elsewhere. `should_stop` is asked after every step; when it
    says so, a checkpoint is written and False is returned; True when the recipe is finished. Raises `RunError` when
    a loss or weight is not finite or the disk refuses, and `UserError` when there is a run already or, to resume,
    one of another network, recipe, seed or data.
    """
    chosen = settings or TrainSettings()
    config = RunConfig(
        seed=seed,
        data=data.source,
        data_fingerprint=data.fingerprint(),
        family=net.family,
        model=net.settings.model_dump(mode="json"),
        recipe=recipe,
        provenance=provenance(chosen.device),
    )
    with run.lock():
        loop = _Loop(net, config, data, run, chosen)  # refuses a recipe that does not fit
        if resume and run.config_file.exists():
            check_identity(run.config().identity(), config.identity(), where=run.config_file)
        else:
            run.create(config)
        return loop.go(on_progress or (lambda _: None), should_stop or (lambda: False))


class _Loop:
    def __init__(
        self, net: Supernet, config: RunConfig, data: DataSet, run: RunDirectory, settings: TrainSettings
    ) -> None:
        self.net = net.to(settings.device)
        self.config, self.run, self.settings = config, run, settings
        self.recipe, self.seed = config.recipe, config.seed
        self.data = data.to(settings.device)
        self.batch_size = min(self.recipe.batch_size, len(data.train))
        self.steps_per_epoch = len(data.train) // self.batch_size
        self.table = timetable(self.recipe, self.steps_per_epoch)
        self.steps = self.table[-1].end
        self.dropouts = [module for module in net.modules() if isinstance(module, nn.Dropout)]
        self.state = _State()
        self.batches: Iterator[Batch] = iter(())
        self.draws = {
            entry.index: SubnetDraws(entry.phase.subnets, net.cost.within(entry.phase.subspace(net.space)))
            for entry in self.table
        }

    def go(self, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> bool:
        self._restore()
        with closing(self.data.train.batches(self._rows_from(self.state.step))) as self.batches:
            return self._train(on_progress, should_stop)

    def _train(self, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> bool:
        state, first_step, began = self.state, self.state.step, time.monotonic()
        saved = began
        self.net.train()
        while state.step < self.steps:
            entry = phase_at(self.table, state.step)
            if state.step == entry.start:
                self._begin_phase(entry)
            lr, arch = self._step(entry)
            state.step += 1
            if state.tally.steps == self.settings.log_every or state.step == entry.end:
                left = self._passes_done(self.steps) - self._passes_done(state.step)
                done = self._passes_done(state.step) - self._passes_done(first_step)
                pace = (time.monotonic() - began) / done
                on_progress(self._log(entry, lr, arch, seconds_left=left * pace))
            stop = should_stop() and state.step < self.steps
            if stop or state.step == self.steps or time.monotonic() - saved >= self.settings.checkpoint_every_s:
                self._save()
                saved = time.monotonic()
            if stop:
                return False
        return True

    def _passes_done(self, step: int) -> int:
        return sum(len(e.phase.subnets) * (min(step, e.end) - e.start) for e in self.table if step > e.start)

    # One step

    def _step(self, entry: PhaseSteps) -> tuple[float, Architecture]:
        """Train one batch; returns the learning rate and the last architecture."""
        state, phase = self.state, entry.phase
        assert state.optimizer is not None
        in_phase = state.step - entry.start
        epoch = in_phase // self.steps_per_epoch
        x_BCHW, y_B, rows_B = self._batch(entry.index, in_phase)
        turn = epoch if phase.hold == "epoch" else in_phase
        rng = derived_rng(self.seed, "subnets", entry.index, turn)
        draws = self.draws[entry.index].draw(rng, turn)
        state.optimizer.zero_grad(set_to_none=self.recipe.idle_weights == "rest")
        largest_logits_BK = None
        losses: list[tuple[Architecture, Tensor]] = []
        hits = torch.zeros((), dtype=torch.long, device=x_BCHW.device)
        with _derived_dropout(x_BCHW.device, self.seed, "dropout", entry.index, in_phase):
            for slot, candidates in zip(phase.subnets, draws, strict=True):
                for dropout in self.dropouts:
                    dropout.train(slot == "largest" or not phase.dropout_largest_only)
                arch = self._choose(slot, candidates, x_BCHW, y_B)
                logits_BK = self.net(x_BCHW, arch)
                loss = self._loss(phase, logits_BK, x_BCHW, y_B, largest_logits_BK)
                if phase.target == "largest" and largest_logits_BK is None:
                    largest_logits_BK = logits_BK.detach()
                torch.autograd.backward(loss * self._weight(phase, in_phase, first=not losses))
                losses.append((arch, loss.detach()))
                hits += (logits_BK.argmax(1) == y_B).sum()
        self._check_finite(losses, entry, rows_B)
        if phase.clip_value is not None:
            nn.utils.clip_grad_value_(self.net.parameters(), phase.clip_value)
        lr = entry.lr(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        state.tally.steps += 1
        state.tally.losses += len(losses)
        state.tally.loss_sum += float(torch.stack([loss for _, loss in losses]).sum())
        state.tally.images += len(losses) * len(y_B)
        state.tally.correct += int(hits)
        return lr, losses[-1][0]

    def _rows_from(self, step: int) -> Iterator[Tensor]:
        """The rows of every batch from `step` to the end. A new order each epoch; a ragged end is left out of it."""
        for entry in self.table:
            first = max(0, step - entry.start)
            for in_phase in range(first, entry.steps):
                epoch, batch = divmod(in_phase, self.steps_per_epoch)
                if batch == 0 or in_phase == first:
                    shuffle = torch.Generator().manual_seed(derived_seed(self.seed, "order", entry.index, epoch))
                    order = torch.randperm(len(self.data.train), generator=shuffle).to(self.data.train.labels.device)
                yield order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _batch(self, phase: int, in_phase: int) -> tuple[Tensor, Tensor, Tensor]:
        """Augmented images, labels and rows of a step."""
        rows_B, images_BCHW, y_B = next(self.batches)
        generator = torch.Generator(images_BCHW.device)
        generator.manual_seed(derived_seed(self.seed, "augment", phase, in_phase))
        x_BCHW = augment(
            images_BCHW,
            self.data.augmentation,
            mean=self.data.mean,
            std=self.data.std,
            generator=generator,
        )
        return x_BCHW.contiguous(memory_format=torch.channels_last), y_B, rows_B

    @torch.no_grad()
    def _choose(self, slot: str, candidates: list[Architecture], x_BCHW: Tensor, y_B: Tensor) -> Architecture:
        """The candidate of lowest (best_up) or highest loss on this batch.

        The trials normalise by the batch, as training does, and move the running statistics as it does.
        """
        if len(candidates) == 1:
            return candidates[0]
        losses = torch.stack([F.cross_entropy(self.net(x_BCHW, arch), y_B) for arch in candidates])
        return candidates[int(losses.argmin() if slot == "best_up" else losses.argmax())]

    def _loss(
        self, phase: Phase, logits_BK: Tensor, x_BCHW: Tensor, y_B: Tensor, largest_logits_BK: Tensor | None
    ) -> Tensor:
        distil = DISTILLATION[phase.distillation]
        if largest_logits_BK is not None:
            return distil(logits_BK, largest_logits_BK)
        loss = F.cross_entropy(logits_BK, y_B, label_smoothing=phase.label_smoothing)
        if phase.target == "labels+teacher":
            assert self.state.teacher is not None
            with torch.no_grad():
                teacher_BK = self.state.teacher(x_BCHW)
            loss = loss + distil(logits_BK, teacher_BK)
        return loss

    def _weight(self, phase: Phase, in_phase: int, *, first: bool) -> float:
        if first or not phase.ramp_epochs:
            return 1.0
        return min(1.0, in_phase / (phase.ramp_epochs * self.steps_per_epoch))

    def _check_finite(self, losses: list[tuple[Architecture, Tensor]], entry: PhaseSteps, rows_B: Tensor) -> None:
        if torch.stack([loss for _, loss in losses]).isfinite().all():
            return
        arch, loss = next((arch, loss) for arch, loss in losses if not loss.isfinite())
        last = checkpoint.newest(self.run.checkpoints)
        raise RunError(
            f"the loss is {float(loss)} at step {self.state.step} (phase {entry.phase.name!r}, learning rate "
            f"{entry.lr(self.state.step):.3g}) for subnet {arch} on training images {rows_B[:4].tolist()}…; "
            f"stopped before the step. Last good checkpoint: {last.name if last else 'none written yet'}"
        )

    # Phases

    def _begin_phase(self, entry: PhaseSteps) -> None:
        """Sort channels, choose the teacher, and start momentum anew, as the phase asks."""
        if entry.index == 1 and any(_learns_from_largest(e.phase) for e in self.table):
            self.state.trained_teacher = _as_teacher(self.net).eval()
        if entry.phase.sort_channels:
            self.net.sort_channels(self._trained_before(entry))
        self.state.teacher = self._teacher(entry)
        self.state.optimizer = self._optimizer(entry)

    def _trained_before(self, entry: PhaseSteps) -> SearchSpace:
        if entry.index == 0:
            return self.net.space
        return self.table[entry.index - 1].phase.subspace(self.net.space)

    def _teacher(self, entry: PhaseSteps) -> nn.Module | None:
        if entry.phase.target != "labels+teacher":
            return None
        if _learns_from_largest(entry.phase):
            return self.state.trained_teacher
        untrained = copy.deepcopy(self.net)
        untrained.reset_parameters(derived_seed(self.seed, "untrained teacher"))
        return _as_teacher(untrained).train()

    def _optimizer(self, entry: PhaseSteps) -> torch.optim.SGD:
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.net.named_parameters():
            norm_or_bias = parameter.ndim == 1 or name.endswith("bias")
            (plain if norm_or_bias else decayed).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.recipe.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        if self.recipe.idle_weights == "move":
            for parameter in self.net.parameters():
                parameter.grad = torch.zeros_like(parameter)
        return torch.optim.SGD(
            groups, lr=entry.phase.lr, momentum=self.recipe.momentum, nesterov=self.recipe.momentum > 0
        )

    # Recording

    def _log(self, entry: PhaseSteps, lr: float, arch: Architecture, *, seconds_left: float) -> Progress:
        tally, step = self.state.tally, self.state.step
        progress = Progress(
            step=step,
            steps=self.steps,
            phase=entry.phase.name,
            epoch=step / self.steps_per_epoch,
            lr=lr,
            loss=tally.loss_sum / tally.losses,
            top1=100 * tally.correct / tally.images,
            macs=self.net.cost_of(arch).macs,
            arch=arch,
            seconds_left=seconds_left,
        )
        line = {k: v for k, v in vars(progress).items() if k not in ("seconds_left", "steps")}
        self.run.append_metrics(line | {"arch": str(arch), "passes": self._passes_done(step) / self.steps_per_epoch})
        self.state.tally = _Tally()
        return progress

    def _save(self) -> None:
        """Write a checkpoint. Raises `RunError`, and writes nothing, where a weight is not finite."""
        state = self.state
        momenta = {} if state.optimizer is None else state.optimizer.state
        tensors: dict[str, dict[str, Tensor]] = {"weights": dict(self.net.state_dict())}
        bad = [name for name, tensor in tensors["weights"].items() if not tensor.isfinite().all()]
        if bad:
            last = checkpoint.newest(self.run.checkpoints)
            raise RunError(
                f"after step {state.step} the weights of {bad[0]} are not finite; they were not saved. "
                f"Last good checkpoint: {last.name if last else 'none written yet'}"
            )
        tensors["optimizer"] = {
            name: momenta[parameter]["momentum_buffer"]
            for name, parameter in self.net.named_parameters()
            if "momentum_buffer" in momenta.get(parameter, {})
        }
        if state.trained_teacher is not None:
            tensors["teacher"] = dict(state.trained_teacher.state_dict())
        checkpoint.save(
            self.run.checkpoints,
            state.step,
            tensors,
            {"step": state.step, "tally": vars(state.tally), "identity": self.config.identity()},
        )

    def _restore(self) -> None:
        found = checkpoint.load_latest(self.run.checkpoints)
        if found is None:
            self.run.drop_metrics_after(0)
            if self.recipe.zero_init_residual:
                self.net.zero_init_residual()
            self._save()
            return
        check_identity(found.state["identity"], self.config.identity(), where=found.path)
        self.net.load_state_dict(found.tensors["weights"])
        self.state.step, self.state.tally = found.step, _Tally(**found.state["tally"])
        self.run.drop_metrics_after(found.step)
        entry = phase_at(self.table, max(0, found.step - 1))
        if "teacher" in found.tensors:
            self.state.trained_teacher = _as_teacher(self.net).eval()
            self.state.trained_teacher.load_state_dict(found.tensors["teacher"])
        self.state.teacher = self._teacher(entry)
        self.state.optimizer = self._optimizer(entry)
        for name, parameter in self.net.named_parameters():
            if name in found.tensors["optimizer"]:
                buffer = found.tensors["optimizer"][name].to(parameter.device)
                self.state.optimizer.state[parameter]["momentum_buffer"] = buffer


def _learns_from_largest(phase: Phase) -> bool:
    return phase.target == "labels+teacher" and phase.teacher == "largest"


def _as_teacher(net: Supernet) -> nn.Module:
    """The largest subnet as a frozen network of its own."""
    return crop_kernels(net.extract(net.space.largest())).requires_grad_(requires_grad=False)


def check_identity(recorded: dict[str, Any], asked: dict[str, Any], *, where: Path) -> None:
    """Raise `UserError` where what was recorded is of another run than the one asked for."""
    for key, value in asked.items():
        if recorded.get(key) != value:
            raise UserError(f"{where} is of another run: its {key.replace('_', ' ')} differs from the one given")


@contextmanager
def _derived_dropout(device: torch.device, *key: int | str) -> Iterator[None]:
    """Seed the generators that dropout uses, and put them back as they were."""
    seed = derived_seed(*key)
    if device.type != "cuda":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    with torch.random.fork_rng(devices=[device]), torch.cuda.device(device):
        torch.cuda.manual_seed(seed)
        yield
