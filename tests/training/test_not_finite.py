"""Losses and weights that are not finite stop a training before anything is saved of them."""

import math
from pathlib import Path

import pytest
import torch
from tests.conftest import MakeData, MakeNet
from tests.support.training import State, differing, recipe_of, state_of, uniform

from trainonce.errors import RunError
from trainonce.recipes import RECIPES, Phase
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.space import derived_seed
from trainonce.training.loop import train_supernet


class TestNotFinite:
    def test_it_stops_before_the_step_and_says_where(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path
    ) -> None:
        net, data, run = make_net(), make_data(), RunDirectory(tmp_path / "run")
        recipe = RECIPES["spos"].with_batch_size(8).scaled(2.5 / 590)
        asked = 0

        def stop_at_4() -> bool:
            nonlocal asked
            asked += 1
            return asked == 4

        planted: list[State] = []

        def plant() -> bool:
            with torch.no_grad():
                net.classifier.bias[1] = float("nan")
            planted.append(state_of(net))
            return False

        assert not train_supernet(net, recipe, data, run, should_stop=stop_at_4)
        with pytest.raises(RunError) as caught:
            train_supernet(net, recipe, data, run, resume=True, should_stop=plant)
        shuffle = torch.Generator().manual_seed(derived_seed(0, "order", 0, 1))
        rows = torch.randperm(32, generator=shuffle)[8:12].tolist()
        lr = RECIPES["spos"].phases[0].lr / 8 * 0.5 * (1 + math.cos(math.pi * 5 / 10))
        assert str(caught.value) == (
            f"the loss is nan at step 5 (phase 'random', learning rate {lr:.3g}) for subnet {uniform(net, 0, 0, 5)} "
            f"on training images {rows}…; stopped before the step. Last good checkpoint: step-000004"
        )
        assert len(planted) == 1
        parameters = {name for name, _ in net.named_parameters()}
        after = {k: v.nan_to_num() for k, v in state_of(net).items() if k in parameters}
        before = {k: v.nan_to_num() for k, v in planted[0].items() if k in parameters}
        assert differing(after, before) == []

        assert train_supernet(net, recipe, data, run, resume=True)  # the checkpoint is good, and so is what follows
        straight = make_net()
        train_supernet(straight, recipe, data, RunDirectory(tmp_path / "straight"))
        assert differing(state_of(net), state_of(straight)) == []

    def test_weights_that_are_not_finite_are_not_saved(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path
    ) -> None:
        """The last step's loss is finite, but the step itself is not."""
        net, run = make_net(), RunDirectory(tmp_path)
        recipe = recipe_of(Phase(name="one step", epochs=0.25, lr=3e38))
        with pytest.raises(RunError, match=r"after step 1 the weights of .* are not finite.*step-000000"):
            train_supernet(net, recipe, make_data(), run)
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        assert found.step == 0

    def test_a_learning_rate_far_too_large(self, make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
        recipe = recipe_of(Phase(name="steep", epochs=5, lr=1e30))
        run = RunDirectory(tmp_path)
        with pytest.raises(
            RunError, match=r"the loss is (nan|inf) at step \d+ \(phase 'steep', learning rate [\d.]+e\+\d+\)"
        ):
            train_supernet(make_net(), recipe, make_data(), run)
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        assert found.step == 0, "the weights as they began are the last good ones"
        assert torch.equal(found.tensors["weights"]["stem.0.weight"], make_net().state_dict()["stem.0.weight"])
