"""What changes while training: how phases begin, and how a checkpoint brings it back, on every rank alike."""

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.models import Supernet
from trainonce.nn.batch_norm import synchronise
from trainonce.nn.dropout import dropouts
from trainonce.parallel.distributed import Ranks
from trainonce.recipes import Phase, PhaseSteps, phase_at
from trainonce.run import checkpoint
from trainonce.run.directory import RunConfig, RunDirectory
from trainonce.run.exposure import Exposure
from trainonce.sampling import MacsSampler
from trainonce.settings import JsonObject
from trainonce.space import Architecture, SearchSpace, derived_seed
from trainonce.training.averaging import Average
from trainonce.training.importance import loss_gradients
from trainonce.training.optimizers import (
    idle_gradients,
    let_idle_move,
    optimizer_for,
    refuse_another,
    restore_state,
    state_groups,
    stepper_for,
)
from trainonce.training.step_sums import Known, StepSums
from trainonce.training.teacher import frozen


class TrainState:
    """The supernet in training with all that its next step depends on: a checkpoint of step s is this before step s.

    Ranks hold the same, but for running statistics where batch norm is not synchronised: rank 0's count.
    """

    def __init__(
        self,
        net: Supernet,
        config: RunConfig,
        data: DataSet,
        table: tuple[PhaseSteps, ...],
        run: RunDirectory,
        ranks: Ranks,
    ) -> None:
        self.net, self.config, self.data, self.table, self.run, self.ranks = net, config, data, table, run, ranks
        self.recipe, self.seed = config.recipe, config.seed
        self.device = next(net.parameters()).device
        by_head = any(e.phase.trains == "head" or e.phase.backbone_lr < 1 for e in table)
        self.head = net.head() if by_head else frozenset[str]()
        """The names of the head's parameters, where a phase trains them otherwise than the rest."""
        self.step = 0
        self.passes = 0
        """Subnets trained, each on a batch."""
        self.left_out = 0
        """Steps of those done that were left out for want of time."""
        self.sums = StepSums(self.device)
        self.known = Known(self.device)
        by_macs = MacsSampler(net.cost)
        self.exposure = Exposure(net.space, by_macs.min_macs, by_macs.max_macs)
        """Recorded by rank 0 alone: every rank trains the same subnets."""
        self.seconds_before = 0.0
        self.began = time.monotonic()
        self.optimizer: torch.optim.Optimizer | None = None
        self.average: Average | None = None
        self.trained_teacher: nn.Module | None = None
        self.teacher: nn.Module | None = None
        self.stepper: Callable[[], object] | None = None
        """What takes the optimizer's steps in a phase; made with the first, when its state is there."""
        self.idle: list[tuple[nn.Parameter, Tensor]] | None = None
        """What `let_idle_move` takes."""

    # Phases

    def begin_phase(self, entry: PhaseSteps) -> None:
        """Sort channels, choose the teacher, and start the optimizer and the average anew, as the phase asks."""
        if self.trained_teacher is None and _learns_from_largest(entry.phase):
            self.trained_teacher = _as_teacher(self.net).eval()
            self.ranks.copy_from_first(self.trained_teacher.state_dict().values())
        if entry.phase.sort_channels:
            self._sort(entry)
        self._prepare(entry)

    def _prepare(self, entry: PhaseSteps) -> None:
        """The teacher, what is trained, the optimizer and the average of a phase, as it begins."""
        self.teacher = self._teacher(entry)
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(entry.phase.trains == "all" or name in self.head)
        self.optimizer = optimizer_for(self.net, self.recipe, entry.phase, self.head)
        refuse_another(self.optimizer)
        self.ranks.copy_from_first(state["scale"] for state in self.optimizer.state.values() if "scale" in state)
        self.stepper = self.idle = None
        self.average = Average(self.net, self.recipe.ema, since=entry.start) if self.recipe.ema else None

    def _sort(self, entry: PhaseSteps) -> None:
        kept, by = self._trained_before(entry), entry.phase.sort_by
        if by == "l1":
            self.net.sort_channels(kept)
        elif by == "l2":
            self.net.sort_channels(kept, torch.square)
        else:
            gradients = loss_gradients(self.net, self.data)
            self.ranks.copy_from_first(gradients.values())
            self.net.sort_channels(kept, lambda parameter: (parameter * gradients[parameter]).abs())

    def _trained_before(self, entry: PhaseSteps) -> SearchSpace:
        if entry.index == 0:
            return self.net.space
        return self.table[entry.index - 1].phase.subspace(self.net.space)

    def _teacher(self, entry: PhaseSteps) -> nn.Module | None:
        if entry.phase.target != "labels+teacher":
            return None
        if _learns_from_largest(entry.phase):
            assert self.trained_teacher is not None
            if entry.phase.teacher_statistics == "running":
                return self.trained_teacher
            teacher = _as_teacher(self.net)
            teacher.load_state_dict(self.trained_teacher.state_dict())
            return self._by_batch(teacher)
        untrained = copy.deepcopy(self.net)
        untrained.reset_parameters(derived_seed(self.seed, "untrained teacher"))
        return self._by_batch(_as_teacher(untrained))

    def _by_batch(self, teacher: nn.Module) -> nn.Module:
        """The teacher without dropout, its batch norms normalising by the batch: of all ranks if asked for."""
        teacher.train()
        for layer in dropouts(teacher):
            layer.eval()
        if self.config.sync_batch_norm and not self.ranks.alone:
            synchronise(teacher, self.ranks)
        return teacher

    def leave_out(self, steps: int) -> None:
        """Go on some steps later than the next."""
        self.step += steps
        self.left_out += steps

    def let_idle_weights_move(self) -> None:
        """Let momentum and decay move weights that a step left out, but not the matrices of Muon."""
        if self.idle is None:
            assert self.optimizer is not None
            self.idle = idle_gradients(self.optimizer)
        let_idle_move(self.idle)

    def move_weights(self) -> None:
        """Take the optimizer's step."""
        assert self.optimizer is not None
        if self.stepper is None:
            self.stepper = stepper_for(self.optimizer)
        self.stepper()

    def average_weights(self) -> None:
        """Take the weights that a step has left into their average, where there is one."""
        if self.average is not None:
            self.average.add(self.step)

    def end(self) -> None:
        """Leave in the network what its checkpoint has for later stages: the average, where there is one."""
        if self.average is not None:
            self.average.exchange()

    # What is recorded beside the weights

    def record(self, archs: tuple[Architecture, ...], lr: float) -> None:
        """Count a step's subnets into the exposure, by rank 0."""
        if self.ranks.first:
            self.exposure.add(archs, [self.net.cost(arch).macs for arch in archs], lr)

    def seconds(self) -> float:
        """Seconds of training since the run began, in this and earlier sessions; looking aside does not count."""
        return self.seconds_before + time.monotonic() - self.began

    def aside(self, work: Callable[[], None], *, looking: bool = False) -> None:
        """Do something that is no part of training; `looking` at the network as later stages would load it."""
        began = time.monotonic()
        with nullcontext() if self.average is None or not looking else self.average.shown():
            work()
        self.began += time.monotonic() - began

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint, by rank 0. Raises `RunError`, and writes nothing, where a weight is not finite."""
        with self.ranks.together():
            if self.ranks.first:
                self._write()

    def keep(self) -> None:
        """Keep the weights as they are now for good, by rank 0. Raises `RunError` as `save` does."""
        with self.ranks.together():
            if self.ranks.first:
                state = {"step": self.step, "identity": self.config.identity()}
                checkpoint.save(self.run.kept, self.step, {"weights": self._finite_weights()}, state, keep=None)

    def _finite_weights(self) -> dict[str, Tensor]:
        """What later stages load."""
        weights: dict[str, Tensor] = dict(self.net.state_dict())
        if self.average is not None:
            weights |= self.average.tensors
        finite = torch.stack([tensor.isfinite().all() for tensor in weights.values()]).tolist()
        if not all(finite):
            raise RunError(
                f"after step {self.step} the weights of {list(weights)[finite.index(False)]} are not finite; they were "
                f"not saved. {self.last_good()}"
            )
        return weights

    def _write(self) -> None:
        if self.optimizer is not None:
            refuse_another(self.optimizer)
        tensors = {"weights": self._finite_weights(), **state_groups(self.net, self.recipe, self.optimizer)}
        if self.average is not None:
            tensors["trained"] = {name: weight.detach() for name, weight in self.net.named_parameters()}
        if self.trained_teacher is not None:
            tensors["teacher"] = dict(self.trained_teacher.state_dict())
        recorded = self.exposure
        tensors["exposure"] = {name: torch.from_numpy(array) for name, array in recorded.state().items()}
        state = {
            "step": self.step,
            "passes": self.passes,
            "left_out": self.left_out,
            "tally": self.sums.to_json(),
            "known": self.known.to_json(),
            "exposure": {"steps": recorded.steps, "lr_sum": recorded.lr_sum},
            "seconds": self.seconds(),
            "identity": self.config.identity(),
        }
        self.run.write_exposure(recorded.table())  # first: a run whose last checkpoint is there has nothing left to do
        checkpoint.save(self.run.checkpoints, self.step, tensors, state)

    def last_good(self) -> str:
        """The sentence that says which checkpoint there is."""
        last = checkpoint.newest(self.run.checkpoints)
        return f"Last good checkpoint: {last.name if last else 'none written yet'}"

    def restore(self) -> None:
        """Go on from the newest whole checkpoint, or begin and write one of step 0.

        Rank 0 reads; the others get from it every tensor, so that they need not see its disk.
        """
        found: checkpoint.Checkpoint | None = None
        with self.ranks.together():
            if self.ranks.first:
                found = checkpoint.load_latest(self.run.checkpoints)
                if found is not None:
                    recorded = RunConfig.parse(found.state["identity"], where=str(found.path))
                    check_identity(recorded.identity(), self.config.identity(), where=found.path)
                self.run.drop_after(0 if found is None else found.step)
        if not self.ranks.collect_json(found is not None)[0]:
            if self.recipe.zero_init_residual and not (self.config.start and self.config.start.trained):
                self.net.zero_init_residual()
            self.ranks.copy_from_first(self.net.state_dict().values())
            self.save()
            return
        self._bring_back(found)

    def _bring_back(self, found: checkpoint.Checkpoint | None) -> None:
        """The state of a checkpoint that rank 0 has found; on the other ranks None stands for it."""
        groups = {} if found is None else found.tensors
        mine = None
        if found is not None:
            left_out, names = found.state.get("left_out", 0), {k: list(t) for k, t in groups.items()}
            mine = [
                found.step,
                found.state.get("passes", self._passes(found.step)),
                left_out,
                found.state["tally"],
                found.state.get("known", {}),
                names,
            ]
        self.step, self.passes, self.left_out, sums, known, names = self.ranks.collect_json(mine)[0]
        self.sums, self.known = StepSums.from_json(sums, self.device), Known.from_json(known, self.device)
        if found is not None:
            self._bring_back_records(found)
        self.net.load_state_dict(groups.get("weights", self.net.state_dict()))
        if "teacher" in names:
            self.trained_teacher = _as_teacher(self.net).eval()
            self.trained_teacher.load_state_dict(groups.get("teacher", self.trained_teacher.state_dict()))
            self.ranks.copy_from_first(self.trained_teacher.state_dict().values())
        self._prepare(phase_at(self.table, max(0, self.step - 1)))
        assert self.optimizer is not None
        restore_state(self.net, self.recipe, self.optimizer, names, groups)
        if self.average is not None:  # made of the weights of later stages, it is whole; what steps train lies beside
            self.net.load_state_dict(self.net.state_dict() | groups.get("trained", {}))
            self.ranks.copy_from_first(self.average.tensors.values())
        states = [t for group in state_groups(self.net, self.recipe, self.optimizer).values() for t in group.values()]
        self.ranks.copy_from_first([*self.net.state_dict().values(), *states])

    def _passes(self, step: int) -> int:
        """Subnets trained up to a step where none was left out: checkpoints of before that could be do not say."""
        return sum(len(e.phase.subnets) * (min(step, e.end) - e.start) for e in self.table if step > e.start)

    def _bring_back_records(self, found: checkpoint.Checkpoint) -> None:
        """The exposure and the seconds; a checkpoint of before they were recorded has none."""
        if "exposure" in found.tensors:
            counts = {name: tensor.numpy() for name, tensor in found.tensors["exposure"].items()}
            self.exposure.restore(counts, **found.state["exposure"])
        self.seconds_before, self.began = found.state.get("seconds", 0.0), time.monotonic()


def check_identity(recorded: JsonObject, asked: JsonObject, *, where: Path) -> None:
    """Raise `UserError` where what was recorded is of another run than the one asked for, as far as it was recorded."""
    for key, value in asked.items():
        if recorded.get(key, value) != value:
            raise UserError(f"{where} is of another run: its {key.replace('_', ' ')} differs from the one given")


def _learns_from_largest(phase: Phase) -> bool:
    return phase.target == "labels+teacher" and phase.teacher == "largest"


def _as_teacher(net: Supernet) -> nn.Module:
    """The largest subnet as a frozen network of its own."""
    return frozen(net.extract(net.space.largest()))
