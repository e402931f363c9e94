"""The elastic MobileNetV3: one network in three forms, shared weights, seeds, sorting, refusals."""

import hashlib
import random
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from trainonce.errors import UserError
from trainonce.models import (
    FAMILIES,
    GEOMETRIES,
    MobileNetV3,
    MobileNetV3Settings,
    Supernet,
    build,
)
from trainonce.models.layout import make_divisible
from trainonce.nn import blocks, ops
from trainonce.nn.plain import BN_MOMENTUM, MBConv, PlainNetwork
from trainonce.space import Architecture, SearchSpace

TINY = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=10)
PAPER = MobileNetV3Settings(num_classes=10)


def randomised(settings: MobileNetV3Settings = TINY) -> MobileNetV3:
    """A supernet in evaluation mode whose every weight and statistic is its own."""
    net, generator = MobileNetV3(settings), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if "transforms" in key or tensor.ndim == 1:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        # Statistics that fit, else the images' signal dies out on the way.
        side = net.describe(net.space.largest()).resolution
        x = torch.randn(8, settings.in_channels, side, side, generator=generator)
        plain_norms = [module for module in net.train().modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in plain_norms:
            norm.momentum = 1.0
        with patch.object(ops, "BN_MOMENTUM", 1.0), patch.object(blocks, "BN_MOMENTUM", 1.0):
            for arch in (net.space.largest(), net.space.smallest()):
                net(x, arch)
        for norm in plain_norms:
            norm.momentum = BN_MOMENTUM
    return net.eval()


def images(settings: MobileNetV3Settings = TINY, *, batch: int = 4, side: int | None = None) -> Tensor:
    side = side or settings.resolutions[-1]
    return torch.randn(batch, settings.in_channels, side, side, generator=torch.Generator().manual_seed(9))


def some(space: SearchSpace, count: int = 8) -> list[Architecture]:
    rng = random.Random(3)
    return [space.largest(), space.smallest(), *(space.sample(rng) for _ in range(count))]


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


class TestThreeForms:
    @pytest.mark.parametrize("settings", [TINY, PAPER], ids=["tiny", "paper"])
    def test_equal_in_evaluation_mode(self, settings: MobileNetV3Settings) -> None:
        net, x = randomised(settings), images(settings)
        for arch in some(net.space):
            plain = net.extract(arch)
            assert not plain.training
            assert torch.equal(net(x, arch), plain(x))
            assert torch.equal(net.bind(arch)(x), plain(x))

    @pytest.mark.parametrize("settings", [TINY, PAPER], ids=["tiny", "paper"])
    def test_agree_in_training_mode(self, settings: MobileNetV3Settings) -> None:
        """Training crops kernels, so rounding differs; statistics move alike. Dropout is off."""
        net = randomised(settings.model_copy(update={"dropout": 0.0})).double().train()
        x = images(settings, batch=16).double()
        for arch in some(net.space, count=3):
            plain = net.extract(arch).double()
            plain.load_state_dict(net.slices(arch), strict=False)
            assert plain.training
            assert torch.allclose(net(x, arch), plain(x), rtol=1e-6, atol=1e-8)
            moved = plain.state_dict()
            for name, tensor in net.slices(arch).items():
                assert torch.allclose(tensor, moved[name], rtol=1e-6, atol=1e-8), name

    def test_gradients_are_those_of_the_plain_network(self) -> None:
        net, x = randomised().double(), images().double()
        arch = net.space.sample(random.Random(11))
        plain = net.extract(arch).double()
        plain.load_state_dict(net.slices(arch), strict=False)
        for model in (net.bind(arch), plain):
            model(x).square().sum().backward()
        first, last = net.first.project.weight.grad, net.classifier.weight.grad
        assert first is not None
        assert last is not None
        twin = dict(plain.named_parameters())
        assert torch.allclose(first, twin["blocks.0.project.0.weight"].grad, rtol=1e-8)  # type: ignore[arg-type]
        assert torch.allclose(last, twin["classifier.weight"].grad, rtol=1e-8)  # type: ignore[arg-type]

    def test_dropout_acts_in_training_mode_alone(self) -> None:
        net, x = randomised(TINY.model_copy(update={"dropout": 0.5})), images()
        arch = net.space.largest()
        assert torch.equal(net(x, arch), net(x, arch))
        net.dropout.train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert not torch.equal(net(x, arch), net(x, arch))

    def test_bind_shares_weights_and_extraction_copies_them(self) -> None:
        net, x, arch = randomised(), images(), randomised().space.smallest()
        bound, plain = net.bind(arch), net.extract(arch)
        shared = {id(parameter) for parameter in net.parameters()}
        assert {id(parameter) for parameter in bound.parameters()} == shared
        before, original = state_of(net), plain(x)
        with torch.no_grad():
            for tensor in plain.state_dict().values():
                tensor.zero_()
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert torch.equal(bound(x), original)
        with torch.no_grad():
            net.classifier.bias.add_(1)
        assert torch.allclose(bound(x), original + 1, atol=1e-5)
        assert isinstance(plain, PlainNetwork)
        assert (plain(x) == 0).all()

    def test_extraction_and_training_the_copy_leave_the_supernet_alone(self) -> None:
        net = randomised()
        before = state_of(net)
        plain = net.extract(net.space.largest()).train()
        plain(images()).sum().backward()
        torch.optim.SGD(plain.parameters(), lr=1.0).step()
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert all(parameter.grad is None for parameter in net.parameters())

    def test_slices_are_the_whole_state_of_the_plain_network(self) -> None:
        net = randomised()
        for arch in some(net.space, count=3):
            expected = {k: v.shape for k, v in net.extract(arch).state_dict().items() if "num_batches" not in k}
            found = {k: v.shape for k, v in net.slices(arch).items() if "num_batches" not in k}
            assert found == expected


class TestRefusals:
    def test_forgetting_the_architecture(self) -> None:
        with pytest.raises(TypeError, match="arch"):
            MobileNetV3(TINY)(images())

    def test_architectures_of_another_space(self) -> None:
        net, other = MobileNetV3(TINY), MobileNetV3(PAPER).space.largest()
        for use in (net.describe, net.extract, net.bind, net.cost_of, net.slices, lambda a: net(images(), a)):
            with pytest.raises(UserError, match=r"stage1\.depth is 4; it may be 1, 2"):
                use(other)

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"kernel_sizes": (3, 4)}, "kernel_sizes must be odd"),
            ({"depths": (3, 2)}, "depths must be distinct, rising and at least 1"),
            ({"depths": (0, 2)}, "depths must be distinct, rising and at least 1"),
            ({"resolutions": ()}, "resolutions must be distinct, rising and at least 1"),
            ({"strides": (1, 2, 3, 1, 1)}, "strides must be 1 or 2"),
            ({"num_classes": 1}, "num_classes: .*greater than or equal to 2"),
            ({"width": 2}, "unknown key 'width'; the valid keys are resolutions, in_channels, num_classes"),
        ],
    )
    def test_settings(self, fields: dict[str, object], says: str) -> None:
        with pytest.raises(UserError, match=says):
            MobileNetV3Settings.parse({"num_classes": 10, **fields}, where="here")

    def test_names(self) -> None:
        with pytest.raises(UserError, match="unknown geometry 'big'; the geometries are paper, cifar, tiny"):
            MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=2, geometry="big")
        with pytest.raises(UserError, match="unknown family 'vit'; there are mobilenet_v3"):
            build("vit", {})
        assert list(FAMILIES) == ["mobilenet_v3", "proxyless_nas", "resnet"]

    def test_build_is_the_constructor(self) -> None:
        built: Supernet = build("mobilenet_v3", TINY.model_dump(mode="json"), seed=4)
        expected = MobileNetV3(TINY, seed=4).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in built.state_dict().items())


class TestGeometry:
    def test_the_papers_network(self) -> None:
        spec = MobileNetV3(PAPER).describe(MobileNetV3(PAPER).space.largest())
        assert len(spec.blocks) == 21
        stages = [spec.blocks[1 + 4 * i : 5 + 4 * i] for i in range(5)]
        assert [{b.out_channels for b in stage} for stage in stages] == [{24}, {40}, {80}, {112}, {160}]
        assert [stage[0].stride for stage in stages] == [2, 2, 2, 1, 2]
        assert all(b.stride == 1 and b.residual for stage in stages for b in stage[1:])
        assert [{bool(b.se_channels) for b in stage} for stage in stages] == [{False}, {True}, {False}, {True}, {True}]
        acts = ["relu", "relu", "h_swish", "h_swish", "h_swish"]
        assert [{b.activation for b in stage} for stage in stages] == [{act} for act in acts]
        first = spec.blocks[0]
        assert (first.mid_channels, first.out_channels, first.kernel_size, first.expand) == (16, 16, 3, False)
        assert (spec.stem_channels, spec.final_channels, spec.feature_channels) == (16, 960, 1280)

    @pytest.mark.parametrize(
        ("geometry", "fields", "costs", "space"),
        [
            ("paper", {}, "f380c241025ddaac", "b4a75a79e196f048"),
            ("paper", {"resolutions": (16, 32)}, "9330cc98991ff7ab", "3d983dd8083f336a"),
            ("paper", {"width_mult": 1.2}, "d1bef49e00119cc0", "b4a75a79e196f048"),
            ("cifar", {}, "49f269fef04b7aaa", "b4a75a79e196f048"),
            ("cifar", {"resolutions": (16, 32)}, "d3972698b79f93cf", "3d983dd8083f336a"),
            ("cifar", {"width_mult": 1.2}, "9f27cd4afd6c8965", "b4a75a79e196f048"),
            ("tiny", {}, "93ffac8f7d47cfbd", "32b195682949ceb6"),
            ("tiny", {"resolutions": (16, 32)}, "718022248665512f", "a3e4fa7485ab6c22"),
            ("tiny", {"width_mult": 1.2}, "0c6f25d783653c45", "32b195682949ceb6"),
        ],
    )
    def test_spaces_and_costs_stay_what_runs_have_recorded(
        self, geometry: str, fields: dict[str, Any], costs: str, space: str
    ) -> None:
        """As they were when MobileNetV3 was the only family; weights, logits and gradients were then compared too."""
        side = 8 if geometry == "tiny" else 32
        settings = MobileNetV3Settings.for_images(
            image_size=side, in_channels=3, num_classes=10, geometry=geometry, **fields
        )
        net, rng = MobileNetV3(settings), random.Random(7)
        archs = [net.space.largest(), net.space.smallest(), *(net.space.sample(rng) for _ in range(20))]
        found = [(str(arch), net.cost_of(arch).macs, net.cost_of(arch).params) for arch in archs]
        choices = [
            (c.name, c.values, c.parent, None if c.allowed is None else dict(c.allowed)) for c in net.space.choices
        ]
        digests = [hashlib.sha256(repr(value).encode()).hexdigest()[:16] for value in (found, choices)]
        assert digests == [costs, space]

    def test_map_sizes(self) -> None:
        """32 pixels: 16, 8, 4, 2, 2, 1; the CIFAR geometry: 32, 32, 16, 8, 8, 4."""
        cifar = MobileNetV3Settings.for_images(image_size=32, in_channels=3, num_classes=10, geometry="cifar")
        for settings, expected in ((PAPER, [16, 8, 4, 2, 2, 1]), (cifar, [32, 32, 16, 8, 8, 4])):
            net = MobileNetV3(settings).eval()
            plain, sides = net.extract(net.space.smallest()), []
            with torch.no_grad():
                x = plain.stem(images(settings, batch=1))
                for block in plain.blocks:
                    x = block(x)
                    sides.append(x.shape[-1])
            assert [sides[0], *sides[1::2]] == expected

    def test_make_divisible(self) -> None:
        """Against its definition by search: a multiple of 8, at least 8 and 90%, and the nearest such."""
        for channels in range(1, 500):
            candidates = [n for n in range(8, 600, 8) if n >= 0.9 * channels]
            nearest = min(abs(n - channels) for n in candidates)
            assert make_divisible(channels) == max(n for n in candidates if abs(n - channels) == nearest)

    def test_small_images_get_the_tiny_geometry(self) -> None:
        for side, name in ((8, "tiny"), (16, "tiny"), (17, "paper"), (32, "paper")):
            settings = MobileNetV3Settings.for_images(image_size=side, in_channels=1, num_classes=2)
            assert settings.strides == GEOMETRIES[name]["strides"]
            assert settings.resolutions == (side,)
        overridden = MobileNetV3Settings.for_images(image_size=8, in_channels=1, num_classes=2, depths=(1,))
        assert overridden.depths == (1,)

    @pytest.mark.parametrize(
        ("side", "sides"),
        [
            (8, (8,)),
            (21, (21,)),
            (22, (16, 22)),
            (28, (21, 28)),
            (32, (16, 24, 32)),
            (50, (25, 37, 50)),
            (64, (32, 48, 64)),
        ],
    )
    def test_light_has_smaller_images_to_choose_from(self, side: int, sides: tuple[int, ...]) -> None:
        images: dict[str, Any] = {"image_size": side, "in_channels": 1, "num_classes": 2, "geometry": "light"}
        assert MobileNetV3Settings.for_images(**images).resolutions == sides
        assert MobileNetV3Settings.for_images(**images, resolutions=(side,)).resolutions == (side,)

    @pytest.mark.parametrize("side", [5, 8, 16, 28, 32, 48, 64, 100])
    def test_the_last_map_of_light_is_as_small_as_it_may_be(self, side: int) -> None:
        """Never under 4 pixels; a further halving would be, or all that there are have been made."""
        settings = MobileNetV3Settings.for_images(image_size=side, in_channels=1, num_classes=2, geometry="light")
        net, sizes = MobileNetV3(settings).eval(), list[int]()
        plain = net.extract(net.space.largest())
        plain.blocks[-1].register_forward_hook(lambda _module, _args, x: sizes.append(x.shape[-1]))
        with torch.inference_mode():
            plain(torch.zeros(1, 1, side, side))
        assert sizes[0] >= 4
        halvings = [settings.stem_stride, *settings.strides].count(2)
        assert -(-sizes[0] // 2) < 4 or halvings == 5
        assert halvings <= 5


class TestElasticResolution:
    def test_the_choice_resizes_the_images(self) -> None:
        settings = TINY.model_copy(update={"resolutions": (6, 8, 11)})
        net = randomised(settings)
        fixed = {side: randomised(TINY.model_copy(update={"resolutions": (side,)})) for side in (6, 8, 11)}
        x, seen = images(side=8), {}
        for side, one in fixed.items():
            one.load_state_dict(net.state_dict())
            arch = net.space.check({**one.space.largest(), "resolution": side})
            found = net(x, arch)
            assert torch.equal(found, one(x, one.space.largest()))
            assert torch.equal(found, net.extract(arch)(x))
            resized = torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
            assert torch.allclose(found, net(resized, arch), atol=1e-6)
            seen[side] = found
        assert not torch.allclose(seen[6], seen[8])
        assert not torch.allclose(seen[8], seen[11])

    def test_is_a_choice_only_where_there_are_several(self) -> None:
        assert "resolution" not in MobileNetV3(TINY).space.largest()
        several = MobileNetV3(TINY.model_copy(update={"resolutions": (6, 8)})).space
        assert several["resolution"].values == (6, 8)
        assert str(several.smallest()).startswith("r6_d1.")
        assert several.count() == 2 * MobileNetV3(TINY).space.count()


class TestInitialisation:
    def test_depends_on_the_seed_alone(self) -> None:
        torch.manual_seed(1)
        one = MobileNetV3(TINY, seed=3).state_dict()
        torch.manual_seed(2)
        same, other = MobileNetV3(TINY, seed=3).state_dict(), MobileNetV3(TINY, seed=4).state_dict()
        assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
        different = {name for name, tensor in one.items() if not torch.equal(tensor, other[name])}
        expected = {n for n, t in one.items() if (t.ndim == 4 or n == "classifier.weight") and "transforms" not in n}
        assert different == expected

    def test_leaves_the_global_generator_alone(self) -> None:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        net = MobileNetV3(TINY, seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        net.reset_parameters(5)
        assert torch.equal(torch.get_rng_state(), before)
        net.extract(net.space.largest())
        assert torch.equal(torch.get_rng_state(), before)

    def test_reset_is_a_fresh_network(self) -> None:
        net = randomised()
        net.reset_parameters(3)
        fresh = MobileNetV3(TINY, seed=3).state_dict()
        assert all(torch.equal(tensor, fresh[name]) for name, tensor in net.state_dict().items())

    def test_values(self) -> None:
        """He initialisation by fan-out; batch norms at one and zero; transforms at the identity."""
        net = MobileNetV3(PAPER, seed=0)
        block = net.blocks["stage5_block2"]
        weights = {name: tensor for name, tensor in block.state_dict().items() if tensor.ndim == 4}
        assert weights
        for name, weight in weights.items():
            fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
            assert float(weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
        for name, tensor in net.state_dict().items():
            if "transforms" in name:
                assert torch.equal(tensor, torch.eye(len(tensor)))
        norms = [module for module in net.modules() if hasattr(module, "running_var")]
        assert len(norms) == 2 + 2 + 3 * 20
        for norm in norms:
            for attribute, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                assert (getattr(norm, attribute) == value).all()


class TestSortChannels:
    @pytest.mark.parametrize(
        "keep", [{"expand_ratio": 1}, {"expand_ratio": 2}, {"expand_ratio": 3}], ids=["6", "4 6", "3 4 6"]
    )
    def test_every_subnet_of_the_kept_part_computes_the_same(self, keep: dict[str, int]) -> None:
        net, x = randomised(PAPER).double(), images(PAPER).double()
        kept = net.space.keep_largest(keep)
        wanted = some(kept)
        before = [net(x, arch) for arch in wanted]
        weights = state_of(net)
        net.sort_channels(kept)
        changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, weights[name])}
        assert any("stage3_block2" in name for name in changed)
        assert all(
            name.startswith("blocks.") and "project_bn" not in name and "transforms" not in name for name in changed
        )
        for arch, expected in zip(wanted, before, strict=True):
            assert torch.allclose(net(x, arch), expected, rtol=1e-5, atol=1e-8)

    def test_what_is_not_kept_changes(self) -> None:
        net, x = randomised(PAPER), images(PAPER)
        arch = net.space.smallest()
        before = net(x, arch)
        net.sort_channels(net.space.keep_largest({"expand_ratio": 1}))
        assert not torch.allclose(net(x, arch), before, rtol=1e-2)
        norms = net.state_dict()["blocks.stage2_block3.project.weight"].abs().sum((0, 2, 3))
        assert torch.equal(norms, norms.sort(descending=True).values)

    def test_of_widths_that_share_a_squeezed_width(self) -> None:
        net, x = randomised().double(), images().double()
        wanted = some(net.space)
        before = [net(x, arch) for arch in wanted]
        net.sort_channels(net.space)
        for arch, expected in zip(wanted, before, strict=True):
            assert torch.allclose(net(x, arch), expected, rtol=1e-8)


def test_zero_init_makes_residual_blocks_identities() -> None:
    net = MobileNetV3(PAPER, seed=1).eval()
    largest = net.extract(net.space.largest())
    net.zero_init_residual()
    zeroed = net.extract(net.space.largest())
    residual = 0
    for before, block, spec in zip(largest.blocks, zeroed.blocks, zeroed.spec.blocks, strict=True):
        assert isinstance(block, MBConv)
        assert isinstance(before, MBConv)
        x = torch.randn(2, spec.in_channels, 4, 4, generator=torch.Generator().manual_seed(0))
        if spec.residual and spec.expand:
            residual += 1
            assert torch.equal(block(x), x)
            assert not torch.equal(before(x), x)
        else:
            assert torch.equal(block(x), before(x))
    assert residual == 15
    # Deeper subnets then compute what shallower ones do.
    x = images(PAPER)
    shallow = net.space.restrict({"depth": (2,)})
    assert torch.equal(net(x, shallow.largest()), net(x, net.space.largest()))
