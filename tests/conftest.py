"""What several tests share: a tiny supernet, tiny images, and damage to files."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from trainonce.data import DataSet, Split
from trainonce.models import MobileNetV3, MobileNetV3Settings

torch.set_num_threads(1)

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]


@pytest.fixture(scope="session")
def make_net() -> MakeNet:
    """A supernet of 280 thousand parameters: `make_net(seed=1, dropout=0.0)`."""

    def make(*, seed: int = 0, **fields: Any) -> MobileNetV3:
        tiny: dict[str, Any] = {
            "num_classes": 3,
            "in_channels": 1,
            "resolutions": (8,),
            "width_mult": 0.25,
            "depths": (1, 2),
            "kernel_sizes": (3, 5),
            "strides": (1, 2, 1, 1, 1),
            "stem_stride": 1,
        }
        return MobileNetV3(MobileNetV3Settings(**{**tiny, **fields}), seed=seed)

    return make


@pytest.fixture(scope="session")
def make_data() -> MakeData:
    """Random grey images of 8 x 8 in 3 classes, 4 batches of 8 to train on: `make_data(seed=1, train=8)`."""

    def make(*, seed: int = 0, **fields: Any) -> DataSet:
        generator = torch.Generator().manual_seed(seed)
        sizes = {"train": 32, "calibrate": 24, "validate": 30, "test": 15}
        sizes |= {name: fields.pop(name) for name in sizes if name in fields}

        def split(count: int) -> Split:
            images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
            return Split(images, torch.randint(0, 3, (count,), generator=generator))

        splits = {name: split(count) for name, count in sizes.items()}
        plain = {"name": "tiny", "class_names": ("a", "b", "c"), "mean": (0.4,), "std": (0.3,), "augmentation": None}
        return DataSet(**{**plain, **splits, **fields})

    return make


class RerunCapture:
    """Captures as a GPU does, on the CPU: recording does nothing, a replay does the work again into the same tensors.

    What was recorded before is made useless, as it is where one pool of memory serves all.
    """

    refuses: str | None = None

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.asides = self.captures = self.replays = 0
        self.static: Sequence[Tensor] = ()

    def aside(self, passes: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        self.asides += 1
        return passes()

    def capture(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
        self.captures += 1
        if self.refuses:
            raise RuntimeError(self.refuses)
        assert all(p.grad is None for p in self.net.parameters()), "gradients would not lie in the graph's memory"
        before = [buffer.clone() for buffer in self.net.buffers()]
        static = work()
        for buffer, value in zip(self.net.buffers(), before, strict=True):
            buffer.copy_(value)
        for tensor in [*self.static, *static]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else -(10**6))
        self.static = static

        def again() -> None:
            assert self.static is static, "replayed after another capture"
            self.replays += 1
            self.net.zero_grad()  # a graph writes gradients, whatever is attached
            for place, found in zip(static, work(), strict=True):
                place.copy_(found)
            self.net.zero_grad()  # nor does it attach them

        return static, again


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[RerunCapture]:
    """Lets steps be captured on the CPU too; the list gets the capture of each training."""
    made: list[RerunCapture] = []

    def capture_for(net: nn.Module) -> RerunCapture:
        made.append(RerunCapture(net))
        return made[-1]

    monkeypatch.setattr("trainonce.train.capture_for", capture_for)
    return made


@pytest.fixture(scope="session")
def damaged() -> Callable[[bytes], st.SearchStrategy[bytes]]:
    """Bytes made from good ones: cut off, a few replaced, removed or put in between, or anything at all."""

    def damage(content: bytes) -> st.SearchStrategy[bytes]:
        place = st.integers(0, len(content))
        cut = place.map(lambda n: content[:n])
        changed = st.builds(
            lambda start, length, new: content[:start] + new + content[start + length :],
            place,
            st.integers(0, 8),
            st.binary(max_size=8) | st.sampled_from([b"0", b"9", b"-1", b"null", b"[]", b"{}", b'"', b"1e999", b"NaN"]),
        )
        return cut | changed | st.binary(max_size=60)

    return damage
