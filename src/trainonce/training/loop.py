"""The one training loop. Every strategy is a recipe that it reads; it knows nothing of evaluation.

What step 1234 draws (its subnets, its images' order and augmentation, its dropout) follows from the seed, the
phase and the step alone, so a resumed run goes on as if never stopped, ranks agree without talking, and the global
generators are left as they were. Two things hang on what was before, which the checkpoint has: whether a batch is
mixed may hang on what is known, and where steps were left out for want of time, the images that they would have had
are the next step's. Each rank trains its shard of every batch; one exchange a step adds up what they found. On a
GPU no step waits for the host, nor the host for a step: it looks every `LOOK_EVERY` steps, and at what is known.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.cost.memory import refuse_large_batch
from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.models import Supernet
from trainonce.names import import_named
from trainonce.nn.dropout import DrawnMasks
from trainonce.nn.lending import NOTHING, Lent, Replays, lent
from trainonce.nn.precision import logits_in
from trainonce.parallel.distributed import Ranks, everywhere, sum_gradients
from trainonce.recipes import (
    AugmentationChange,
    Phase,
    PhaseSteps,
    Recipe,
    Slot,
    follows_known,
    phase_at,
    timetable,
)
from trainonce.run.directory import RunConfig, RunDirectory, Start, provenance
from trainonce.run.lines import MetricsLine
from trainonce.sampling import SubnetDraws
from trainonce.settings import refuse_subclass
from trainonce.space import Architecture, derived_rng
from trainonce.training.batches import Batches, generator_on
from trainonce.training.block_graphs import BlockGraphs
from trainonce.training.clock import Clock
from trainonce.training.devices import check_device
from trainonce.training.graphs import ForwardGraph, StepGraph, capture_for, holds_one_subnet
from trainonce.training.losses import class_weights, distillation, label_loss
from trainonce.training.optimizers import set_lr
from trainonce.training.settings import EpochEnd, Progress, TrainSettings
from trainonce.training.state import TrainState, check_identity
from trainonce.training.step_sums import StepRecord, StepSums, not_finite

WORTH_CAPTURING = 4.0
"""How many steps a subnet must be held for its step to be captured whole on a GPU: capturing takes as long as some."""
LOOK_EVERY = 10
"""Steps between two looks at what a GPU has recorded: losses that are not finite, ranks that want to stop."""


class _Requests(NamedTuple):
    """What a rank wants beside training on."""

    stop: bool = False
    save: bool = False


def train_supernet(
    net: Supernet,
    recipe: Recipe,
    data: DataSet,
    run: RunDirectory,
    *,
    seed: int = 0,
    start: Start | None = None,
    resume: bool = False,
    settings: TrainSettings | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[EpochEnd], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    ranks: Ranks | None = None,
) -> bool:
    """Train `net` in place by `recipe`; `run` gets run.json, metrics, exposure and checkpoints.

    `start` says where the weights that `net` has come from, if they were trained before.

    With `resume` a run that is there goes on from its newest whole checkpoint: bit for bit on the CPU with the same
    number of threads and processes, up to rounding elsewhere. `should_stop` is asked after every step; when it
    says so, a checkpoint is written and False is returned; True when the recipe is finished. Raises `RunError` when
    a loss or weight is not finite or the disk refuses, and `UserError` when there is a run already or, to resume,
    one of another network, recipe, seed or data.

    `on_epoch` is called on rank 0 after the last step of every epoch, and of the run, and before a checkpoint of that
    step: what it does must leave `net` and its mode as they are, and is done again where a run resumes from before.

    With `ranks` (see `trainonce.parallel.process_group`) every process calls this alike, and each trains its shard of
    each batch. Rank 0 alone reads and writes `run` and reports progress; any rank's `should_stop` stops all, some
    steps later; all return or raise the same, and hold the same network when they return.
    """
    chosen, ranks = settings or TrainSettings(), ranks or Ranks()
    refuse_subclass(recipe, Recipe)
    for phase in recipe.phases:
        refuse_subclass(phase, Phase)
    if recipe.augmentation is not None:
        refuse_subclass(recipe.augmentation, AugmentationChange)
    refuse_subclass(chosen, TrainSettings)
    if not ranks.alone and chosen.device != ranks.device:
        raise UserError(f"the processes were joined for {ranks.device}, but the settings' device is {chosen.device}")
    check_device(chosen.device)
    config = RunConfig(
        seed=seed,
        data=data.source,
        data_fingerprint=data.fingerprint(),
        preparation=data.varied_by(recipe).preparation,
        family=net.family,
        model=net.settings.model_dump(mode="json"),
        recipe=recipe,
        start=start,
        sync_batch_norm=chosen.sync_batch_norm,
        precision=chosen.precision,
        keep_at=chosen.keep_at,
        planned_step_s=chosen.planned_step_s,
        provenance=provenance(chosen.device) | {"processes": ranks.size},
    )
    with ExitStack() as stack:
        with ranks.together():
            refuse_large_step(net, recipe, data, ranks, chosen.device)
            if ranks.first:
                stack.enter_context(run.lock())
            synchronising = chosen.sync_batch_norm and not ranks.alone
            loan = stack.enter_context(lent(net, ranks=ranks if synchronising else None))
            loop = _Loop(net, config, data, run, chosen, ranks, loan)  # refuses a recipe that does not fit
        _check_same_run(config, ranks)
        with ranks.together():
            if ranks.first:
                _claim(run, config, resume=resume)
        finished = loop.go(on_progress or _ignore, on_epoch or _ignore, should_stop or (lambda: False))
        ranks.copy_from_first(net.buffers())
        return finished


def refuse_large_step(net: Supernet, recipe: Recipe, data: DataSet, ranks: Ranks, device: str) -> None:
    """Raise `UserError` where, on a CPU, a step's images or the largest subnet's maps would not fit into memory."""
    if device == "cpu":
        shard = ranks.shard(recipe.images_per_step(len(data.train)))
        refuse_large_batch(len(shard), net.describe(net.space.largest()), data.image_size)


def _check_same_run(config: RunConfig, ranks: Ranks) -> None:
    """Raise `UserError` where ranks were given different seeds, data, networks or recipes."""
    first, *others = ranks.collect_json(config.identity())
    for rank, other in enumerate(others, start=1):
        for key, value in first.items():
            if other[key] != value:
                raise everywhere(UserError(f"process {rank} has another {key.replace('_', ' ')} than process 0"))


def _claim(run: RunDirectory, config: RunConfig, *, resume: bool) -> None:
    if resume and run.config_file.exists():
        if run.config().imported is not None:
            raise UserError(f"the weights of {run.path} were imported: no training stopped there that could go on")
        check_identity(run.config().identity(), config.identity(), where=run.config_file)
    else:
        run.create(config)


def _ignore(_: object) -> None:
    """Nothing is to be done."""


def _look_every(device: torch.device) -> int:
    return 1 if device.type == "cpu" else LOOK_EVERY


class _Loop:
    def __init__(
        self,
        net: Supernet,
        config: RunConfig,
        data: DataSet,
        run: RunDirectory,
        settings: TrainSettings,
        ranks: Ranks,
        lent: Lent,
    ) -> None:
        self.net = net.to(settings.device)
        self.run, self.settings, self.ranks, self.lent = run, settings, ranks, lent
        self.recipe, self.seed = config.recipe, config.seed
        for name, what in self.recipe.own_code().items():  # refused before anything is written
            import_named(name, what, ())
        self.data = data.varied_by(self.recipe).to(settings.device)
        self.shard = ranks.shard(self.recipe.images_per_step(len(data.train)))
        self.follows_known = follows_known(self.data.augmentation)
        self.steps_per_epoch = self.recipe.steps_per_epoch(len(data.train))
        self.table = timetable(self.recipe, self.steps_per_epoch)
        self.steps = self.table[-1].end
        self.keep_steps = {max(1, round(share * self.steps)) for share in settings.keep_at}
        self.state = TrainState(self.net, config, self.data, self.table, run, ranks)
        self.device = self.state.device
        self.look_every = _look_every(self.device)
        self.unseen: list[StepRecord] = []
        labels_N = self.data.train.labels.to(self.device)
        self.class_weights_K = class_weights(labels_N, self.data.num_classes, self.recipe.class_balance)
        self.requests = _Requests()
        self.requests_R = torch.zeros(len(_Requests()), device=self.device)
        exchanging = settings.sync_batch_norm and not ranks.alone  # in the middle of a pass: cannot be captured
        capture = capture_for(self.net) if settings.cuda_graphs and not exchanging else None
        self.graph = None if capture is None else StepGraph(self.net, lent, self.shard, capture)
        self.replays: Replays = NOTHING if capture is None else BlockGraphs(self.net, capture).replays
        self.teaching = None if capture is None else ForwardGraph(capture)
        self.batches = Batches(
            *(self.data, self.table, self.shard),
            steps_per_epoch=self.steps_per_epoch,
            seed=self.seed,
            device=self.device,
        )
        self.draws = {
            entry.index: SubnetDraws(
                entry.phase.subnets, net.cost.within(entry.phase.subspace(net.space)), entry.phase.cycle
            )
            for entry in self.table
        }
        self.one_subnet = {
            e.index
            for e in self.table
            if holds_one_subnet(e.phase, self.draws[e.index].space)
            and (e.phase.hold == "step" or e.hold_steps >= WORTH_CAPTURING)
        }

    def go(
        self,
        on_progress: Callable[[Progress], None],
        on_epoch: Callable[[EpochEnd], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        self.state.restore()
        with self.batches.loading(self.state.step - self.state.left_out):
            finished = self._train(on_progress, on_epoch, should_stop)
        self.state.end()
        return finished

    def _train(
        self,
        on_progress: Callable[[Progress], None],
        on_epoch: Callable[[EpochEnd], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        state, first, began = self.state, self.state.step, time.monotonic()
        saved, clock = began, self._clock()
        while state.step < self.steps:
            entry = phase_at(self.table, state.step)
            if state.step == entry.start:
                state.begin_phase(entry)
            before = state.step
            lr, arch = self._step(entry)
            state.step += 1
            state.known.look()
            state.passes += len(entry.phase.subnets)
            done = state.step == self.steps
            if state.sums.steps == self.settings.log_every or state.step == entry.end:
                self._look()
                pace = (time.monotonic() - began) / self._work(first, state.step)
                self._log(on_progress, entry, lr, arch, seconds_left=self._work(state.step, self.steps) * pace)
                if clock is not None and not done:
                    state.leave_out(clock.leave_out(state.step, state.seconds()))
            if self.ranks.first and (done or state.step // self.steps_per_epoch > before // self.steps_per_epoch):
                epochs = state.step / self.steps_per_epoch
                end = EpochEnd(step=state.step, epoch=epochs if done else float(int(epochs)), last=done)
                state.aside(partial(on_epoch, end), looking=True)
            if any(before < step <= state.step for step in self.keep_steps):
                self._look()
                state.aside(state.keep)
            requests = self._requested(should_stop, saved) if self.ranks.alone else self._requests_of_all()
            stop = requests.stop and not done
            if stop or requests.save or done:
                self._look()
                state.save()
                saved = time.monotonic()
            if stop:
                return False
            if not self.ranks.alone:
                self.requests = self._requested(should_stop, saved)  # goes with the next step's sums
        return True

    def _requested(self, should_stop: Callable[[], bool], saved: float) -> _Requests:
        due = time.monotonic() - saved >= self.settings.checkpoint_every_s
        return _Requests(stop=should_stop(), save=due and self.ranks.first)

    def _requests_of_all(self) -> _Requests:
        """What any rank asked for in the steps since the last look, where all look; nothing elsewhere."""
        if self.state.step % self.look_every:
            return _Requests()
        self._look()
        stop, save = self.requests_R.gt(0).tolist()
        self.requests_R.zero_()
        return _Requests(stop=stop, save=save)

    def _work(self, first: int, end: int) -> float:
        """What the steps from `first` to before `end` are to take: seconds as planned, else subnets."""
        each = self.settings.planned_step_s or [len(entry.phase.subnets) for entry in self.table]
        lengths = (max(0, min(entry.end, end) - max(entry.start, first)) for entry in self.table)
        return sum(one * length for one, length in zip(each, lengths, strict=True))

    def _clock(self) -> Clock | None:
        planned, state = self.settings.planned_step_s, self.state
        return Clock(self.table, planned, step=state.step, seconds=state.seconds()) if planned else None

    # One step

    def _step(self, entry: PhaseSteps) -> tuple[float, Architecture]:
        """Train one batch; returns the learning rate and the last architecture."""
        state, phase = self.state, entry.phase
        assert state.optimizer is not None
        in_phase = state.step - entry.start
        x_BCHW, y_B, rows_B, mixed = self.batches.take(entry.index, in_phase, known=state.known.share)
        turn = entry.turn(state.step)
        rng = derived_rng(self.seed, "subnets", entry.index, turn)
        draws = self.draws[entry.index].draw(rng, turn)
        state.optimizer.zero_grad()
        masks = generator_on(self.device, self.seed, "dropout", entry.index, in_phase)
        if self.graph is not None and entry.index in self.one_subnet:
            archs: tuple[Architecture, ...] = (draws[0][0],)
            losses_S, hits = self.graph.run(
                (entry.index, *archs), lambda x, y: self._passes(entry, in_phase, draws, x, y)[1:], x_BCHW, y_B, masks
            )
        else:
            replays = self.replays if phase.trains == "all" else NOTHING
            with self.lent.step(DrawnMasks(masks, self.shard), replays):
                archs, losses_S, hits = self._passes(entry, in_phase, draws, x_BCHW, y_B)
        losses_S, hits = self._exchange(losses_S, hits)
        lr = entry.lr(state.step)
        self.unseen.append(
            StepRecord(step=state.step, phase=phase.name, lr=lr, archs=archs, rows_B=rows_B, losses_S=losses_S)
        )
        if self.look_every == 1:
            self._look()
        if phase.clip_value is not None:
            nn.utils.clip_grad_value_(self.net.parameters(), phase.clip_value)
        if self.recipe.idle_weights == "move":
            state.let_idle_weights_move()
        set_lr(state.optimizer, lr)
        state.move_weights()
        state.average_weights()
        state.sums.add(losses_S, hits, self.shard.total, mixed=mixed)
        if self.follows_known and not mixed:
            state.known.add(hits, len(losses_S) * self.shard.total)
        state.record(archs, lr)
        return lr, archs[-1]

    def _passes(
        self, entry: PhaseSteps, in_phase: int, draws: list[list[Architecture]], x_BCHW: Tensor, y_B: Tensor
    ) -> tuple[tuple[Architecture, ...], Tensor, Tensor]:
        """Add up the gradients of a step's S subnets; gives them, their losses [S], and hits, a scalar.

        Gradients and losses are of this rank's shard in the mean over the whole batch.
        """
        phase, largest_logits_BK = entry.phase, None
        teacher_BK = self._taught(phase, x_BCHW)
        archs: list[Architecture] = []
        losses: list[Tensor] = []
        hits = torch.zeros((), dtype=torch.long, device=self.device)
        for slot, candidates in zip(self.draws[entry.index].slots, draws, strict=True):
            for dropout in self.lent.dropouts:
                dropout.train(slot.always == "largest" or not phase.dropout_largest_only)
            arch = self._choose(slot, candidates, x_BCHW, y_B)
            logits_BK = logits_in(self.settings.precision, self.net, x_BCHW, arch)
            loss = self._loss(phase, logits_BK, y_B, teacher_BK, largest_logits_BK) * self.shard.fraction
            if phase.target == "largest" and largest_logits_BK is None:
                largest_logits_BK = logits_BK.detach()
            torch.autograd.backward(loss * self._weight(phase, in_phase, first=not losses))
            archs.append(arch)
            losses.append(loss.detach())
            hits += (logits_BK.argmax(1) == (y_B if y_B.dim() == 1 else y_B.argmax(1))).sum()
        return tuple(archs), torch.stack(losses), hits

    def _exchange(self, losses_S: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
        """Sum gradients, losses, hits and requests over all ranks: the one exchange of a step."""
        if self.ranks.alone:
            return losses_S, hits
        requests = [losses_S.new_full((1,), float(request)) for request in self.requests]
        sums = sum_gradients(self.net.parameters(), torch.cat([losses_S, hits[None], *requests]), self.ranks)
        losses_S, hits_1, requested_R = torch.split(sums, [len(losses_S), 1, len(requests)])
        self.requests_R += requested_R
        return losses_S, hits_1[0]

    @torch.no_grad()
    def _choose(self, slot: Slot, candidates: list[Architecture], x_BCHW: Tensor, y_B: Tensor) -> Architecture:
        """The candidate that the slot keeps by its loss on this batch. Waits for the device, and for all ranks.

        The trials normalise by the batch, as training does, and move the running statistics as it does.
        """
        if len(candidates) == 1:
            return candidates[0]
        logits = (logits_in(self.settings.precision, self.net, x_BCHW, arch) for arch in candidates)
        losses = torch.stack([F.cross_entropy(logits_BK, y_B) for logits_BK in logits])
        losses = self.ranks.sum(losses * self.shard.fraction)
        return candidates[int(losses.argmin() if slot.keeps == "lowest" else losses.argmax())]

    @torch.no_grad()
    def _taught(self, phase: Phase, x_BCHW: Tensor) -> Tensor | None:
        """The frozen teacher's logits, which all subnets of a step learn from; None where there is no teacher."""
        if phase.target != "labels+teacher":
            return None
        teacher = self.state.teacher
        assert teacher is not None
        forward = partial(logits_in, self.settings.precision, teacher)
        return forward(x_BCHW) if self.teaching is None else self.teaching.run(teacher, forward, x_BCHW)

    def _loss(
        self,
        phase: Phase,
        logits_BK: Tensor,
        y_B: Tensor,
        teacher_BK: Tensor | None,
        largest_logits_BK: Tensor | None,
    ) -> Tensor:
        distil = distillation(phase.distillation)
        if largest_logits_BK is not None:
            return distil(logits_BK, largest_logits_BK)
        loss = label_loss(logits_BK, y_B, self.class_weights_K, label_smoothing=phase.label_smoothing)
        if teacher_BK is not None:
            loss = phase.label_weight * loss + phase.teacher_weight * distil(logits_BK, teacher_BK)
        return loss

    def _weight(self, phase: Phase, in_phase: int, *, first: bool) -> float:
        if first or not phase.ramp_epochs:
            return 1.0
        return min(1.0, in_phase / (phase.ramp_epochs * self.steps_per_epoch))

    # Looking and recording

    def _look(self) -> None:
        """Wait for the steps done since the last look; raise `RunError` where one had a loss that is not finite."""
        found = not_finite(self.unseen)
        self.unseen.clear()
        if found is not None:
            when = "before" if self.look_every == 1 else "after"
            raise everywhere(RunError(f"{found}; stopped {when} the step. {self.state.last_good()}"))

    def _log(
        self,
        on_progress: Callable[[Progress], None],
        entry: PhaseSteps,
        lr: float,
        arch: Architecture,
        *,
        seconds_left: float,
    ) -> None:
        """Record a line of metrics and report it, by rank 0, and begin the next."""
        sums, step = self.state.sums, self.state.step
        self.state.sums = StepSums(self.device)
        if not self.ranks.first:
            return
        progress = Progress(
            step=step,
            steps=self.steps,
            phase=entry.phase.name,
            epoch=step / self.steps_per_epoch,
            lr=lr,
            loss=sums.mean_loss(),
            top1=100 * self.state.known.share if self.follows_known and not sums.images else sums.top1(),
            macs=self.net.cost_of(arch).macs,
            arch=arch,
            seconds_left=seconds_left,
            left_out=self.state.left_out,
        )
        line = MetricsLine(
            step=step,
            phase=progress.phase,
            epoch=progress.epoch,
            lr=lr,
            loss=progress.loss,
            top1=progress.top1,
            macs=progress.macs,
            arch=str(arch),
            passes=self.state.passes / self.steps_per_epoch,
            seconds=self.state.seconds(),
            left_out=self.state.left_out,
        )
        self.run.append_metrics(line)
        on_progress(progress)
