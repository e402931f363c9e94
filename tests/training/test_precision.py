"""bfloat16: what computes in it, and what stays float32."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainonce.data import DataSet
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.settings import Progress, TrainSettings

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]


@pytest.mark.parametrize(
    "name",
    ["rss", "ps", "attentive", *(pytest.param(name, marks=pytest.mark.long) for name in ("ps-released", "alphanet"))],
)
def test_training(make_net: MakeNet, make_data: MakeData, tmp_path: Path, name: str) -> None:
    """About float32's losses; weights, gradients and momenta are float32, and logits and teachers' are bfloat16."""
    recipe = RECIPES[name].with_batch_size(8)
    recipe, data = recipe.scaled(3 / recipe.epochs), make_data()
    dtypes: dict[str, set[torch.dtype]] = {"float32": set(), "bfloat16": set()}
    losses: dict[str, list[float]] = {}
    gradients: set[torch.dtype] = set()
    for precision, seen in dtypes.items():
        net, run = make_net(), RunDirectory(tmp_path / precision)

        def note(module: nn.Module, _: Any, output: torch.Tensor, seen: set[torch.dtype] = seen) -> None:
            if isinstance(module, nn.Linear):  # the classifier's, of supernet and teacher
                seen.add(output.dtype)

        def look(_at: Progress, net: MobileNetV3 = net) -> None:
            gradients.update(p.grad.dtype for p in net.parameters() if p.grad is not None)

        handle = nn.modules.module.register_module_forward_hook(note)
        try:
            settings = TrainSettings.parse({"precision": precision}, where="here")
            train_supernet(net, recipe, data, run, settings=settings, on_progress=look)
        finally:
            handle.remove()
        assert {p.dtype for p in net.parameters()} == {torch.float32}
        assert gradients == {torch.float32}
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        assert {t.dtype for t in found.tensors["optimizer"].values()} == {torch.float32}
        assert run.config().precision == precision
        losses[precision] = [line.loss for line in run.metrics()]
    assert dtypes == {"float32": {torch.float32}, "bfloat16": {torch.bfloat16}}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05, abs=0.02)
    assert losses["bfloat16"] != losses["float32"]


def test_it_is_no_part_of_a_runs_identity(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    run, recipe, asked = RunDirectory(tmp_path), RECIPES["rss"].with_batch_size(8).scaled(2 / 590), iter(range(9))
    bfloat16 = TrainSettings(precision="bfloat16")
    assert not train_supernet(
        make_net(), recipe, make_data(), run, settings=bfloat16, should_stop=lambda: next(asked) > 2
    )
    assert train_supernet(make_net(), recipe, make_data(), run, resume=True)
    assert json.loads(run.config_file.read_text())["precision"] == "bfloat16"
