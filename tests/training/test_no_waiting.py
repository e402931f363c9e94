"""A step reads nothing back from the device, and what is looked at seldom comes out the same."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import MakeData, MakeNet
from tests.support.lines import timeless
from tests.support.training import differing, state_of
from torch.utils._python_dispatch import TorchDispatchMode

from trainonce.errors import RunError
from trainonce.recipes import RECIPES, Colour, Crop, Flip, PhaseSteps
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture
from trainonce.training import loop as train
from trainonce.training.loop import LOOK_EVERY, train_supernet
from trainonce.training.settings import TrainSettings

READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "lift_fresh")
"""Operations that make a host wait for its GPU: reading a number, a result of unknown size, a tensor from numbers."""


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation whose result a host would have to wait for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen += [name] if any(name.startswith(read) for read in READS) else []
        return func(*args, **(kwargs or {}))


class TestNoWaiting:
    """Where looks are seldom, as on a GPU, a step itself reads nothing back from the device."""

    def steps_within(
        self, monkeypatch: pytest.MonkeyPatch, watch: Callable[[], AbstractContextManager[object]]
    ) -> None:
        real = train._Loop._step

        def watched(loop: train._Loop, entry: PhaseSteps) -> tuple[float, Architecture]:
            if loop.state.step == entry.start:  # the optimizer and the libraries set themselves up
                return real(loop, entry)
            with watch():
                return real(loop, entry)

        monkeypatch.setattr(train._Loop, "_step", watched)

    @pytest.mark.parametrize("name", ["rss", "sandwich", "alphanet", "ps", "ps-released", "deps", "fair", "quick"])
    def test_nothing_is_read_in_a_step(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(train, "_look_every", lambda _: LOOK_EVERY)
        reads = Reads()
        self.steps_within(monkeypatch, lambda: reads)
        recipe = RECIPES[name].with_batch_size(8)
        data = make_data(augmentation=(Crop(scale=(0.5, 1.0)), Flip(), Colour(brightness=0.2)))
        recipe = recipe.scaled(4 / recipe.epochs)
        held = tuple(phase.model_copy(update={"hold_epochs": 1.0}) for phase in recipe.phases)
        recipe = recipe.model_copy(update={"phases": held})
        assert train_supernet(make_net(), recipe, data, RunDirectory(tmp_path), settings=TrainSettings(log_every=3))
        assert reads.seen == []

    def test_nothing_is_read_in_a_replayed_step(
        self,
        make_net: MakeNet,
        make_data: MakeData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        captures: list[Any],
    ) -> None:
        self.test_nothing_is_read_in_a_step(make_net, make_data, tmp_path, monkeypatch, "rss")
        assert captures[0].replays > 0

    def test_the_watch_sees_reads(self) -> None:
        with (reads := Reads()):
            float(torch.zeros(()).sum())
            torch.tensor(3.0)
        assert reads.seen == ["_local_scalar_dense", "lift_fresh"]

    def test_weights_do_not_depend_on_it(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = RECIPES["ps"].with_batch_size(8).scaled(4 / RECIPES["ps"].epochs)
        nets, runs = [make_net(), make_net()], [RunDirectory(tmp_path / "often"), RunDirectory(tmp_path / "seldom")]
        for net, run in zip(nets, runs, strict=True):
            train_supernet(net, recipe, make_data(), run, settings=TrainSettings(log_every=3))
            monkeypatch.setattr(train, "_look_every", lambda _: LOOK_EVERY)
        assert differing(*map(state_of, nets)) == []
        often, seldom = (timeless(run.metrics()) for run in runs)
        assert often == seldom

    @pytest.mark.parametrize(
        ("settings", "steps"),
        [(TrainSettings(log_every=4), 4), (TrainSettings(checkpoint_every_s=0, log_every=1000), 3)],
    )
    def test_what_is_not_finite_is_found_before_it_is_recorded_or_saved(
        self,
        make_net: MakeNet,
        make_data: MakeData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        settings: TrainSettings,
        steps: int,
    ) -> None:
        monkeypatch.setattr(train, "_look_every", lambda _: LOOK_EVERY)
        net, run, asked = make_net(), RunDirectory(tmp_path), 0

        def plant_after_two() -> bool:
            nonlocal asked
            asked += 1
            if asked == 2:
                with torch.no_grad():
                    net.classifier.bias[1] = float("nan")
            return False

        recipe = RECIPES["spos"].with_batch_size(8).scaled(5 / 590)
        says = r"the loss is nan at step 2 .*; stopped after the step\. Last good checkpoint: step-00000"
        # With a checkpoint after every step the planted weights themselves are refused first.
        with pytest.raises(RunError, match=says if settings.log_every == 4 else "weights of classifier.bias"):
            train_supernet(net, recipe, make_data(), run, settings=settings, should_stop=plant_after_two)
        assert asked <= steps
        assert run.metrics() == []
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        assert found.tensors["weights"]["classifier.bias"].isfinite().all()

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("name", ["rss", "sandwich", "ps"])
    def test_no_step_waits_on_a_gpu(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        @contextmanager
        def strict() -> Iterator[None]:
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")

        self.steps_within(monkeypatch, strict)  # which does not count torch.cuda.synchronize, as capturing calls it
        recipe = RECIPES[name].with_batch_size(8)
        data = make_data(augmentation=(Crop(scale=(0.5, 1.0)), Flip(), Colour(brightness=0.2)))
        settings = TrainSettings(device="cuda", log_every=3)
        assert train_supernet(
            make_net(), recipe.scaled(4 / recipe.epochs), data, RunDirectory(tmp_path), settings=settings
        )
