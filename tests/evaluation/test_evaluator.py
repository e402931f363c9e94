"""Scoring a subnet: its own batch-norm statistics by hand, a plain count, and the supernet left as it was."""

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from trainonce.data import DataSet
from trainonce.data.augment import augment
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, recalibrate, score
from trainonce.models import MobileNetV3
from trainonce.nn.cropping import crop_kernels
from trainonce.recipes import Crop, Flip
from trainonce.space import Architecture, derived_rng

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
SETTINGS = EvaluateSettings(calibration_images=20, calibration_batch=8, score_batch=7)


@pytest.fixture
def net(make_net: MakeNet) -> MobileNetV3:
    """A supernet whose batch norms are far from what a fresh one has, with gradients, in training mode."""
    made = make_net(seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in made.state_dict().items():
        if "running" in name or "bn" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    made.train()
    made(torch.randn(4, 1, 8, 8, generator=generator), made.space.largest()).sum().backward()
    return made


def architectures(net: MobileNetV3, count: int = 3) -> list[Architecture]:
    rng = derived_rng("test")
    return [net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(count))]


class TestRecalibrate:
    def test_statistics_of_a_small_network_layer_by_layer(self) -> None:
        generator = torch.Generator().manual_seed(0)
        first, second = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 1)
        plain = nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), second, nn.BatchNorm2d(4))
        batches = [torch.randn(n, 2, 5, 5, generator=generator) for n in (6, 6, 3)]
        recalibrate(plain, batches)

        def normalised(values: list[list[float]], eps: float) -> tuple[list[float], float, float]:
            """One channel of one batch: its normalised values, mean and unbiased variance, in plain Python."""
            flat = [v for row in values for v in row]
            mean = sum(flat) / len(flat)
            squares = sum((v - mean) ** 2 for v in flat)
            return (
                [(v - mean) / (squares / len(flat) + eps) ** 0.5 for v in flat],
                mean,
                squares / (len(flat) - 1),
            )

        means: list[list[list[float]]] = [[], []]
        variances: list[list[list[float]]] = [[], []]
        for batch in batches:
            x = first(batch).detach().double()
            for layer, conv in enumerate((second, None)):
                out = torch.empty_like(x)
                means[layer].append([])
                variances[layer].append([])
                for channel in range(x.shape[1]):
                    values, mean, variance = normalised(x[:, channel].flatten(1).tolist(), 1e-5)
                    out[:, channel] = torch.tensor(values, dtype=torch.float64).view(x[:, channel].shape)
                    means[layer][-1].append(mean)
                    variances[layer][-1].append(variance)
                if conv is not None:
                    x = conv(out.clamp(min=0).float()).detach().double()
        for layer, norm in enumerate((plain[1], plain[5])):
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            # The mean over batches: the small last batch counts as much as the others.
            expected_mean = [sum(column) / 3 for column in zip(*means[layer], strict=True)]
            expected_variance = [sum(column) / 3 for column in zip(*variances[layer], strict=True)]
            torch.testing.assert_close(norm.running_mean, torch.tensor(expected_mean), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(norm.running_var, torch.tensor(expected_variance), rtol=1e-4, atol=1e-5)

    def test_what_it_leaves_behind(self, net: MobileNetV3) -> None:
        plain = net.extract(net.space.largest()).train()
        plain.dropout.p = 0.5
        before = {k: v.clone() for k, v in plain.state_dict().items()}
        batches = [torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
        recalibrate(plain, batches)
        first = {k: v.clone() for k, v in plain.state_dict().items()}
        changed = {k.rpartition(".")[2] for k, v in first.items() if not torch.equal(v, before[k])}
        assert changed == {"running_mean", "running_var", "num_batches_tracked"}
        assert not any(module.training for module in plain.modules())
        assert {m.momentum for m in plain.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
        recalibrate(plain, batches)  # nothing of the statistics before stays
        assert all(torch.equal(v, first[k]) for k, v in plain.state_dict().items())


class TestScore:
    def test_against_a_plain_count(self, net: MobileNetV3, make_data: MakeData) -> None:
        data, plain = make_data(validate=23), net.extract(net.space.largest()).eval()
        right, losses = 0, []
        for image, label in zip(data.validate.images, data.validate.labels.tolist(), strict=True):
            with torch.no_grad():
                logits = plain((image[None].float() / 255 - 0.4) / 0.3)[0].double()
            right += int(logits.tolist().index(max(logits.tolist())) == label)
            losses.append(float(logits.exp().sum().log() - logits[label]))
        assert 0 < right < 23
        for batch in (1, 7, 23, 200):
            found = score(plain, data.validate, data, batch=batch)
            assert found.images == 23
            assert found.top1 == pytest.approx(100 * right / 23, abs=1e-12)
            assert found.loss == pytest.approx(sum(losses) / 23, rel=1e-5)

    def test_which_split(self, net: MobileNetV3, make_data: MakeData) -> None:
        data = make_data()
        plain = net.extract(net.space.smallest())
        for name, split in (("validate", data.validate), ("test", data.test)):
            evaluator = Evaluator(data, name, SETTINGS)  # type: ignore[arg-type]
            found, expected = evaluator.score(plain), score(plain, split, data)
            assert (found.images, found.top1) == (len(split), expected.top1)
            assert found.loss == pytest.approx(expected.loss, rel=1e-5)

    def test_dropout_is_off(self, make_net: MakeNet, make_data: MakeData) -> None:
        net = make_net(dropout=0.9)
        plain = net.extract(net.space.largest()).train()
        assert score(plain, make_data().validate, make_data()) == score(plain, make_data().validate, make_data())
        assert not plain.training


class TestEvaluator:
    @pytest.mark.parametrize(
        ("images", "batch", "sizes"),
        [
            (20, 8, [8, 8, 4]),
            (16, 8, [8, 8]),
            (24, 30, [24]),
            (50, 24, [24, 24, 2]),
            (17, 8, [8, 9]),
            (49, 24, [24, 25]),
        ],
    )
    def test_calibration_images(self, make_data: MakeData, images: int, batch: int, sizes: list[int]) -> None:
        """Of the calibrate split alone, each as often as any other, and never a batch of one."""
        data = make_data()
        evaluator = Evaluator(data, settings=EvaluateSettings(calibration_images=images, calibration_batch=batch))
        assert [len(x) for x in evaluator.calibration_batches] == sizes
        pixels = (torch.cat(evaluator.calibration_batches) * 0.3 + 0.4).mul(255).round().to(torch.uint8)
        known = {bytes(image.flatten().tolist()): i for i, image in enumerate(data.calibrate.images)}
        rows = [known[bytes(image.flatten().tolist())] for image in pixels]
        counts = [rows.count(i) for i in range(24)]
        assert max(counts) - min(counts) <= 1
        assert rows != sorted(rows)

    def test_calibration_images_are_augmented(self, make_data: MakeData) -> None:
        plain, varied = (Evaluator(make_data(augmentation=a)) for a in ((), (Flip(),)))
        pairs = zip(torch.cat(plain.calibration_batches), torch.cat(varied.calibration_batches), strict=True)
        kinds = [(torch.allclose(a, b), torch.allclose(a.flip(2), b)) for a, b in pairs]
        assert all(same or mirrored for same, mirrored in kinds)
        assert 0.4 < sum(same for same, _ in kinds) / len(kinds) < 0.6

    def test_the_statistics_are_those_of_the_calibration_images(self, net: MobileNetV3, make_data: MakeData) -> None:
        evaluator = Evaluator(make_data(), settings=SETTINGS)
        plain = evaluator.recalibrated(net, net.space.largest())
        stem, norm = plain.get_submodule("stem.0"), plain.get_submodule("stem.1")
        assert isinstance(norm, nn.BatchNorm2d)
        outs = [stem(x).detach() for x in evaluator.calibration_batches]
        expected = torch.stack([x.mean((0, 2, 3)) for x in outs]).mean(0)
        assert norm.running_mean is not None
        torch.testing.assert_close(norm.running_mean, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("mode", [True, False])
    def test_the_supernet_is_left_alone(self, net: MobileNetV3, make_data: MakeData, mode: bool) -> None:
        net.train(mode)
        state = copy.deepcopy(net.state_dict())
        grads = {k: None if p.grad is None else p.grad.clone() for k, p in net.named_parameters()}
        global_state = torch.get_rng_state()
        evaluator = Evaluator(make_data(augmentation=(Flip(),)), settings=SETTINGS)
        for arch in architectures(net):
            evaluator(net, arch)
            evaluator.recalibrated(net, arch)
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        for name, parameter in net.named_parameters():
            before = grads[name]
            assert (parameter.grad is None) == (before is None)
            assert before is None or (parameter.grad is not None and parameter.grad.equal(before))
            assert parameter.requires_grad
        assert all(module.training is mode for module in net.modules())
        assert torch.equal(torch.get_rng_state(), global_state)

    def test_cropped_kernels_score_the_same(self, make_net: MakeNet, make_data: MakeData) -> None:
        net = make_net(seed=3, kernel_sizes=(3, 5, 7), strides=(2, 2, 2, 1, 1))  # maps of 8, 4, 2, 1
        evaluator = Evaluator(make_data(validate=60), settings=SETTINGS)
        for arch in architectures(net):
            plain = evaluator.recalibrated(net, arch)
            cropped = crop_kernels(copy.deepcopy(plain))
            assert sum(p.numel() for p in cropped.parameters()) < sum(p.numel() for p in plain.parameters())
            found, expected = evaluator(net, arch), evaluator.score(plain)
            assert found.top1 == expected.top1
            assert found.loss == pytest.approx(expected.loss, rel=1e-4)
            assert evaluator.score(cropped).top1 == expected.top1

    def test_it_follows_from_the_seed(self, net: MobileNetV3, make_data: MakeData) -> None:
        def outcome(seed: int, noise: int) -> list[Tensor]:
            torch.manual_seed(noise)
            data = make_data(augmentation=(Crop(scale=(0.3, 1.0)), Flip()))
            evaluator = Evaluator(data, settings=SETTINGS.model_copy(update={"seed": seed}))
            scores = [evaluator(net, arch) for arch in architectures(net)]
            return [*evaluator.calibration_batches, torch.tensor([(s.top1, s.loss) for s in scores])]

        first, again, other = outcome(0, 1), outcome(0, 2), outcome(5, 1)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))

    def test_the_score_does_not_depend_on_its_batches(self, net: MobileNetV3, make_data: MakeData) -> None:
        scores = [
            Evaluator(make_data(), settings=SETTINGS.model_copy(update={"score_batch": n}))(net, net.space.largest())
            for n in (1, 7, 30)
        ]
        assert all(a.top1 == b.top1 and a.loss == pytest.approx(b.loss, rel=1e-5) for a, b in pairwise(scores))

    def test_the_order_of_evaluating_does_not_matter(self, net: MobileNetV3, make_data: MakeData) -> None:
        evaluator = Evaluator(make_data(), settings=SETTINGS)
        archs = architectures(net)
        forwards = [evaluator(net, arch) for arch in archs]
        backwards = [evaluator(net, arch) for arch in reversed(archs)]
        assert forwards == backwards[::-1]


def test_no_augmentation_calibrates_on_the_images_themselves(make_data: MakeData) -> None:
    data = make_data()
    settings = EvaluateSettings(calibration_images=24, calibration_batch=24)
    (batch,) = Evaluator(data, settings=settings).calibration_batches
    untouched = augment(data.calibrate.images, (), mean=(0.4,), std=(0.3,), generator=torch.Generator())
    assert sorted(batch.flatten(1).tolist()) == sorted(untouched.flatten(1).tolist())
