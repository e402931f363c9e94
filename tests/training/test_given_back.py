"""What training lends to a network it takes back, however it ends."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import MakeData, MakeNet
from tests.support.training import recipe_of
from torch import Tensor, nn

from trainonce.errors import RunError
from trainonce.models import ResNet, ResNetSettings, Supernet
from trainonce.nn.batch_norm import SynchronisedBatchNorm2d
from trainonce.nn.blocks import ElasticBlock
from trainonce.nn.dropout import BatchDropout, DrawnMasks
from trainonce.nn.lending import Lent, lent
from trainonce.parallel.distributed import BatchShard, Ranks
from trainonce.recipes import Phase
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.settings import Progress

Traits = list[tuple[Any, ...]]
RECIPE = recipe_of(
    Phase(name="first", epochs=0.5, subnets=("largest", "uniform")),
    Phase(name="taught", epochs=1.0, target="labels+teacher", teacher_statistics="batch", dropout_largest_only=True),
)


def traits(net: nn.Module) -> Traits:
    """All of each module that is no tensor: which object it is, its type, its parts, attributes, hooks and mode."""
    found = []
    for name, module in net.named_modules():
        own = {
            key: dict(value) if isinstance(value, dict) else value
            for key, value in vars(module).items()
            if key not in ("_parameters", "_buffers")
        }
        own["tensors"] = [id(tensor) for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
        found.append((name, id(module), type(module), own))
    return found


def prepared(net: Supernet) -> list[str]:
    """Give a network modes and hooks of its own; what the hooks note."""
    noted: list[str] = []

    def note(module: nn.Module, _arguments: tuple[Any, ...]) -> None:
        noted.append(type(module).__name__)

    for number, module in enumerate(net.modules()):
        module.training = number % 3 > 0
        if isinstance(module, nn.Dropout):
            module.register_forward_pre_hook(note)
    return noted


@pytest.fixture(params=["mobilenet_v3", "resnet"])
def net(request: pytest.FixtureRequest, make_net: MakeNet) -> Supernet:
    if request.param == "mobilenet_v3":
        return make_net(dropout=0.3)
    return ResNet(ResNetSettings.for_images(image_size=8, in_channels=1, num_classes=3, geometry=None, dropout=0.3))


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("end", ["done", "stopped", "raised", "interrupted", "not finite"])
def test_training_leaves_modules_as_they_were(
    net: Supernet, make_data: MakeData, tmp_path: Path, request: pytest.FixtureRequest, *, graphs: bool, end: str
) -> None:
    captures: list[Any] = request.getfixturevalue("captures") if graphs else []
    noted = prepared(net)
    before, weights = traits(net), copy.deepcopy(net.state_dict())

    def on_progress(at: Progress) -> None:
        if at.phase == "taught" or end == "not finite":
            assert any(isinstance(module, BatchDropout) for module in net.modules())
        if end == "raised":
            raise OSError("the screen is gone")
        if end == "interrupted":
            raise KeyboardInterrupt

    def train(run: RunDirectory, **fields: Any) -> bool:
        return train_supernet(net, RECIPE, make_data(), run, on_progress=on_progress, **fields)

    if end == "not finite":
        with torch.no_grad():
            next(net.parameters()).fill_(torch.inf)
    expected = {"raised": OSError, "interrupted": KeyboardInterrupt, "not finite": RunError}.get(end)
    if expected is None:
        steps = iter(range(5))
        assert train(RunDirectory(tmp_path), should_stop=lambda: end == "stopped" and next(steps) == 3) is (
            end == "done"
        )
        assert any(not torch.equal(a, b) for a, b in zip(net.state_dict().values(), weights.values(), strict=True))
    else:
        with pytest.raises(expected):
            train(RunDirectory(tmp_path))
    assert traits(net) == before
    assert all(parameter.grad is None for parameter in net.parameters())
    assert len(captures) == graphs
    assert noted or end == "not finite", "the network's own hooks are called meanwhile"


def test_what_is_lent_for_a_step_is_given_back_where_it_raises(net: Supernet) -> None:
    prepared(net)
    net.extra = nn.Sequential(nn.BatchNorm2d(2))  # a plain batch norm too
    before, blocks = traits(net), [module for module in net.modules() if isinstance(module, ElasticBlock)]

    def replay(x_BCHW: Tensor, _spec: object) -> Tensor:
        return x_BCHW

    def inside(loan: Lent, masks: DrawnMasks) -> None:
        with loan.step(masks, dict.fromkeys(blocks, replay)):
            assert [block.replayed for block in blocks] == [replay] * len(blocks)
            assert [layer.masks for layer in loan.dropouts] == [masks]
            raise OSError("inside")

    def outer() -> None:
        with lent(net, ranks=Ranks(rank=0, size=2)) as loan:
            assert all(module.training for module in net.modules())
            assert any(type(module) is SynchronisedBatchNorm2d for module in net.modules())
            outside = traits(net)
            masks = DrawnMasks(torch.Generator(), BatchShard(0, 2, 2))
            with pytest.raises(OSError, match="inside"):
                inside(loan, masks)
            assert traits(net) == outside
            raise OSError("outside")

    with pytest.raises(OSError, match="outside"):
        outer()
    assert traits(net) == before
