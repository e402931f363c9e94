"""OFA's ResNet-50 against a reference of its own, written from its definition: `ofa_resnet_reference.py`."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import ofa_resnet_reference as ofa
from torch import Tensor

from trainonce.cost.macs import counted_cost
from trainonce.errors import UserError
from trainonce.models import Supernet
from trainonce.models.ofa import OFA_RESNET, load_ofa
from trainonce.models.registry import build
from trainonce.sampling import MacsSampler
from trainonce.space import Architecture

Choice = tuple[list[int], list[float], list[int]]
PERCENT = (65, 80, 100)


def architecture(net: Supernet, choice: Choice, **fixed: int) -> Architecture:
    """The architecture of a choice as OFA writes it."""
    d, e, w = choice
    values = {**fixed, "stem.depth": d[0] // 2, "stem.width": ofa.stem(w[1])}
    values["stem.inner.width"] = ofa.divisible(ofa.stem(w[0]) // 2)
    for stage, fewest in enumerate(ofa.FEWEST):
        values[f"stage{stage + 1}.depth"] = fewest + d[1 + stage]
        values[f"stage{stage + 1}.width"] = PERCENT[w[2 + stage]]
    for number, (stage, block) in enumerate(ofa.blocks()):
        if block < ofa.FEWEST[stage] + d[1 + stage]:
            values[f"stage{stage + 1}.block{block + 1}.expand_ratio"] = round(100 * e[number])
    return net.space.check(values)


def drawn(seed: int) -> Choice:
    rng = random.Random(seed)
    d = [rng.choice([0, 2]), *(rng.choice([0, 1, 2]) for _ in range(4))]
    return d, [rng.choice(ofa.RATIOS) for _ in range(18)], [rng.choice([0, 1, 2]) for _ in range(6)]


CHOICES = [([2] * 5, [0.35] * 18, [2] * 6), ([0] * 5, [0.2] * 18, [0] * 6), *map(drawn, range(6))]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return ofa.state_dict(7)


@pytest.fixture(scope="module")
def net(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Supernet:
    path = tmp_path_factory.mktemp("ofa") / "file"
    torch.save({"state_dict": state, "epoch": 119}, path)
    return load_ofa(path, OFA_RESNET, resolutions=(48, 64))


@torch.no_grad()
@pytest.mark.parametrize("choice", CHOICES, ids=["largest", "smallest", *map(str, range(6))])
def test_any_subnet_gives_the_logits_of_the_reference(choice: Choice, net: Supernet, state: dict[str, Tensor]) -> None:
    arch = architecture(net, choice, resolution=64)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    want, found = ofa.forward(state, x, *choice), net(x, arch)
    assert 0.1 < float(want.std()) < 1e3
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    assert torch.equal(net.extract(arch)(x), found)
    assert net.cost_of(arch) == counted_cost(net.describe(arch))


def test_the_ends_are_those_of_the_choices(net: Supernet) -> None:
    assert architecture(net, CHOICES[0], resolution=64) == net.space.largest()
    assert architecture(net, CHOICES[1], resolution=48) == net.space.smallest()


@pytest.mark.long
@torch.no_grad()
def test_older_names_and_images_of_another_size(net: Supernet, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(ofa.state_dict(7, old_names=True), tmp_path / "old")
    old = load_ofa(tmp_path / "old", OFA_RESNET, resolutions=(40,))
    assert all(torch.equal(old.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
    x, choice = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(2)), drawn(8)
    want = ofa.forward(state, x, *choice)
    torch.testing.assert_close(old(x, architecture(old, choice)), want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_is_a_family_as_others(net: Supernet, tmp_path: Path) -> None:
    """Built anew from its settings; drawn at a number of MACs; with other classes; with channels in another order."""
    again = build(net.family, net.settings.model_dump(mode="json"))
    again.load_state_dict(net.state_dict())
    x, rng = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)), random.Random(0)
    arch = net.space.sample(rng)
    assert torch.equal(again.eval()(x, arch), net(x, arch))
    macs = net.cost_of(arch).macs
    found = MacsSampler(net.cost).sample(rng, macs * 0.9, macs)
    assert macs * 0.9 <= net.cost_of(found).macs <= macs
    other = net.with_head(3)
    assert other(x, arch).shape == (1, 3)
    before = other.eval()(x, net.space.largest())
    other.sort_channels(net.space)
    torch.testing.assert_close(other(x, net.space.largest()), before)
    assert torch.equal(other(x, arch), other.extract(arch)(x))


def spoilt(state: dict[str, Tensor], **changed: Any) -> dict[str, Any]:
    return {name: tensor for name, tensor in {**state, **changed}.items() if tensor is not None}


def test_what_is_wrong_with_a_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "file"
    for given, says in [
        (spoilt(state, **{"blocks.3.conv2.conv.conv.weight": None}), "blocks.3.conv2.conv.weight"),
        (spoilt(state, **{"blocks.0.conv1.conv.conv.weight": torch.zeros(88, 64, 3, 3)}), "blocks.0.conv1.conv.weight"),
        (spoilt(state, **{"classifier.linear.linear.weight": torch.zeros(7, 9)}), "classifier.linear.weight"),
        (spoilt(state, more=torch.zeros(1)), "more"),
    ]:
        torch.save(given, file)
        with pytest.raises(UserError, match=rf"is not a ofa_resnet50: .*{says}"):
            load_ofa(file, OFA_RESNET)
    torch.save(state, file)
    for resolutions in ((), (64, 48), (16, 64)):
        with pytest.raises(UserError, match="the resolutions must be rising, and at least 32"):
            load_ofa(file, OFA_RESNET, resolutions=resolutions)
