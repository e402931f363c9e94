"""Chains of segments against each subnet extracted, recalibrated and run by itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainonce.evaluation.chain import Chain
from trainonce.evaluation.evaluator import recalibrate
from trainonce.models import MobileNetV3
from trainonce.nn import native
from trainonce.nn.segments import Segment
from trainonce.space import Architecture, derived_rng


def batches(count: int, size: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 1, 8, 8, generator=generator) for _ in range(count)]


def by_itself(net: MobileNetV3, arch: Architecture, calibration: list[Tensor], images: list[Tensor]) -> Tensor:
    plain = net.extract(arch)
    recalibrate(plain, calibration)
    with torch.no_grad():
        return torch.cat([plain(x) for x in images])


@pytest.mark.parametrize("path", ["native", "plain"])
@pytest.mark.parametrize("kept_bytes", [0, 20_000, 1 << 30])
def test_each_subnet_as_by_itself_in_any_order(
    path: str, kept_bytes: int, make_net: Callable[..., MobileNetV3], monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "plain":
        monkeypatch.setattr(native, "usable", lambda _x: False)
    net = make_net(seed=1).eval()
    calibration, images = batches(3, 6, seed=1), [*batches(2, 5, seed=2), *batches(1, 3, seed=3)]
    chain = Chain(lambda: calibration, lambda: images, kept_bytes=kept_bytes)
    rng = derived_rng(0, "chain")
    archs = [net.space.sample(rng) for _ in range(8)]
    for arch in [*archs, *sorted(archs, key=str), archs[0], archs[0]]:
        together = torch.cat(list(chain.logits(net.extract(arch))))
        torch.testing.assert_close(together, by_itself(net, arch, calibration, images), rtol=2e-4, atol=2e-4)


def test_the_common_beginning_is_run_once(
    make_net: Callable[..., MobileNetV3], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_net(seed=1).eval()
    runs: list[object] = []

    def counted(segment: Segment, x: Tensor) -> Tensor:
        runs.append(segment)
        return segment.eval().run(x)

    monkeypatch.setattr(Segment, "forward", counted)
    chain = Chain(lambda: batches(2, 6, seed=1), lambda: batches(2, 5, seed=2))
    first = net.space.largest()
    last_kernel = next(name for name in reversed(list(first)) if name.endswith("kernel_size"))
    second = net.space.check({**first, last_kernel: 3})
    list(chain.logits(net.extract(first)))
    whole = len(runs)
    list(chain.logits(net.extract(second)))
    assert whole == 2 * len(net.extract(first).blocks) + 2 * 2  # two batches; stem, blocks and head
    assert len(runs) - whole == 2 * 2  # the last block and the head


def test_other_weights_are_other_segments(make_net: Callable[..., MobileNetV3]) -> None:
    calibration, images = batches(2, 6, seed=1), batches(2, 5, seed=2)
    chain = Chain(lambda: calibration, lambda: images)
    for seed in (1, 2):
        net = make_net(seed=seed).eval()
        arch = net.space.largest()
        found = torch.cat(list(chain.logits(net.extract(arch))))
        torch.testing.assert_close(found, by_itself(net, arch, calibration, images), rtol=2e-4, atol=2e-4)


def test_abandoned_halfway_nothing_half_done_is_used(make_net: Callable[..., MobileNetV3]) -> None:
    net = make_net(seed=1).eval()
    calibration, images = batches(2, 6, seed=1), batches(3, 5, seed=2)
    chain = Chain(lambda: calibration, lambda: images)
    arch = net.space.largest()
    next(chain.logits(net.extract(arch)))
    found = torch.cat(list(chain.logits(net.extract(arch))))
    torch.testing.assert_close(found, by_itself(net, arch, calibration, images), rtol=2e-4, atol=2e-4)


def test_memory_kept_stays_within_bounds(make_net: Callable[..., MobileNetV3]) -> None:
    net = make_net(seed=1).eval()
    chain = Chain(lambda: batches(3, 6, seed=1), lambda: batches(3, 5, seed=2), kept_bytes=60_000)
    list(chain.logits(net.extract(net.space.largest())))
    kept = [x for flow in (chain._calibration, chain._images) for made in flow.kept.values() for x in made]
    assert kept
    assert sum(x.nbytes for x in kept) <= 60_000
