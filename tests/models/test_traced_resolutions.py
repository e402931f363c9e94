"""A person's own network at several sizes of images: at each its largest subnet is the network itself."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.own_networks import Attention, Chain, Inverted, Residual, Shuffled
from torch import Tensor, nn

from trainonce import testing
from trainonce.cost import partial
from trainonce.cost.macs import counted_cost
from trainonce.cost.partial import PartialCosts
from trainonce.errors import UserError
from trainonce.models.traced import Traced, TracedSettings, elastic, in_own_classes, resolutions, table
from trainonce.models.traced.resolutions import smaller_sides
from trainonce.nn.plain import resize
from trainonce.sampling import MacsSampler
from trainonce.space import derived_rng

SIDES = (5, 8, 12)
EXAMPLE = torch.zeros(2, 1, 12, 12)


@cache
def made() -> tuple[nn.Module, Traced]:
    torch.manual_seed(0)
    model = Inverted().eval()
    net = elastic(model, EXAMPLE, resolutions=SIDES, stages=True, kernels=True)
    net.eval()
    return model, net


def images() -> Tensor:
    return torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", SIDES)
def test_the_largest_subnet_is_the_network_on_smaller_images(side: int) -> None:
    model, net = made()
    largest = net.space.build(lambda choice, values: side if choice.name == "resolution" else values[-1])
    with torch.no_grad():
        assert torch.equal(net(images(), largest), model(resize(images(), side)))


@given(st.integers(0, 10_000))
def test_a_subnet_computes_what_its_extracted_network_does_and_costs_what_torch_counts(seed: int) -> None:
    model, net = made()
    arch = net.space.sample(derived_rng(seed))
    assert arch["resolution"] in SIDES
    assert net.space.parse(str(arch)) == arch
    plain = net.extract(arch)
    with torch.no_grad():
        want = net(images(), arch)
        assert torch.equal(want, plain(images()))
        assert torch.equal(want, plain(resize(images(), arch["resolution"])))
        if arch["stage1.depth"]:  # else the branch, which is no module of its own, is left out
            own = in_own_classes(net, model, arch)
            assert torch.equal(want, own(resize(images(), arch["resolution"])))
    assert net.cost_of(arch) == counted_cost(net.describe(arch))


def test_drawing_at_macs_is_exact() -> None:
    _, net = made()
    sampler = MacsSampler(net.cost)
    wanted = {net.cost_of(arch).macs for arch in net.space.architectures()}
    low, high = min(wanted), max(wanted)
    for seed in range(20):
        arch = sampler.sample(derived_rng(seed), low=(low + high) // 2, high=(low + high) * 6 // 10)
        assert (low + high) // 2 <= net.cost_of(arch).macs <= (low + high) * 6 // 10


def test_other_classes_keep_the_sizes_and_the_weights() -> None:
    _, net = made()
    other = net.with_head(7)
    assert other.space == net.space
    for side in SIDES:
        arch = net.space.build(lambda c, values, side=side: side if c.name == "resolution" else values[0])  # type: ignore[misc]
        assert other(images(), arch).shape == (3, 7)
    with pytest.raises(UserError, match="traced at 5, 8, 12 pixels: give it images of 12"):
        net.with_head(7, resolutions=(6,))


def test_settings_that_were_written_make_the_same_network() -> None:
    _, net = made()
    again = Traced(TracedSettings.model_validate_json(net.settings.model_dump_json()), seed=0)
    again.load_state_dict(net.state_dict())
    arch = net.space.smallest()
    assert torch.equal(again.eval()(images(), arch), net(images(), arch))
    written = net.settings.model_dump(mode="json")
    written["smaller"] = written["smaller"][::-1]
    with pytest.raises(ValueError, match="the resolutions must be rising, not 8, 5, 12"):
        TracedSettings.model_validate(written)


def test_the_table_names_the_sizes() -> None:
    _, net = made()
    (line,) = [line for line in table(net).splitlines() if "resolution" in line]
    assert line.split()[:4] == ["resolution", "5", "8", "12"]
    assert "MACs" in line


@pytest.mark.parametrize(
    ("model", "fields", "sentence"),
    [
        (Chain(), {}, r"the network cannot take images of 6 pixels: "),  # its classifier sees a flattened map
        (Shuffled(), {}, r"the network cannot take images of 6 pixels: "),  # spells its map out
        (Attention(), {}, r"the network cannot take images of 6 pixels: "),  # learned places
        (Residual(), {"resolutions": (8, 10)}, r"the resolutions must be from 1 to the 8 pixels of the images, not"),
        (Residual(), {"resolutions": (0, 8)}, r"the resolutions must be from 1 to the 8 pixels of the images, not"),
    ],
)
def test_a_network_for_one_size_is_refused(model: nn.Module, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        elastic(model, torch.zeros(2, 1, 8, 8), **({"resolutions": (6,)} | fields))


class BySize(nn.Module):
    """Does something else with small images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 10)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        if x.shape[-1] > 6:
            x = torch.relu(self.down(x))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def test_by_default_the_sizes_are_what_the_network_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole strides from half of its own size on; a classifier behind a flattened map is for one size."""
    assert [list(smaller_sides(side)) for side in (32, 64, 96, 100, 224)] == [
        *([], [32], [64]),
        *([64, 96], [128, 160, 192]),
    ]
    monkeypatch.setattr(resolutions, "STRIDE", 4)
    assert elastic(Residual(), torch.zeros(1, 1, 16, 16), resolutions=None).settings.resolutions == (8, 12, 16)
    assert elastic(Chain(), torch.zeros(1, 1, 8, 8), resolutions=None).settings.resolutions == (8,)


def test_the_resolution_can_be_turned_off_as_any_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolutions, "STRIDE", 4)
    example_BCHW = torch.zeros(1, 1, 16, 16)
    assert elastic(Residual(), example_BCHW, resolutions=None, off=("*.depth",)).settings.resolutions == (8, 12, 16)
    assert elastic(Residual(), example_BCHW, resolutions=None, off=("resolution",)).settings.resolutions == (16,)
    with pytest.raises(UserError, match=r"resolution is turned off, but images of \[8, 12\] pixels are asked for"):
        elastic(Residual(), example_BCHW, resolutions=(12, 8), off=("resol*",))


def test_no_smaller_sizes_where_subnets_could_not_be_drawn_by_their_macs_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolutions, "STRIDE", 4)
    example_BCHW = torch.zeros(1, 1, 16, 16)
    with_them, without = (
        max(map(len, PartialCosts(elastic(Residual(), example_BCHW, resolutions=sides).cost).steps))
        for sides in ((8, 12), ())
    )
    assert with_them > without
    monkeypatch.setattr(partial, "MOST_STATES", with_them - 1)
    assert elastic(Residual(), example_BCHW, resolutions=None).settings.resolutions == (16,)


def test_a_network_that_does_something_else_is_refused() -> None:
    elastic(BySize(), torch.zeros(2, 1, 8, 8), resolutions=(7,))
    with pytest.raises(UserError, match="something else at 6 pixels than at 8"):
        elastic(BySize(), torch.zeros(2, 1, 8, 8), resolutions=(6,))


@pytest.mark.long
def test_it_owes_what_every_family_does(tmp_path: Path) -> None:
    net = elastic(Residual(), torch.zeros(2, 1, 8, 8), resolutions=(6, 8))
    fields: dict[str, Any] = {"network": net.settings.network, "smaller": net.settings.smaller, "resolutions": (6, 8)}
    testing.check_family(Traced, tmp_path, **fields)
