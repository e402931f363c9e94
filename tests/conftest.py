"""What several tests share: a tiny supernet, tiny images, and damage to files."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from tests.support.lines import timeless
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainonce.data import DataSet, Split
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so have the processes that tests start: their tests share the cores

settings.register_profile("untimed", deadline=None)  # no test is timed: other processes may have the cores
settings.load_profile("untimed")

T = TypeVar("T")
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
    """Random images of 8 x 8 in 3 classes, grey unless `channels=3`, 4 batches of 8: `make_data(seed=1, train=8)`."""

    def make(*, seed: int = 0, **fields: Any) -> DataSet:
        generator, channels = torch.Generator().manual_seed(seed), fields.pop("channels", 1)
        sizes = {"train": 32, "calibrate": 24, "validate": 30, "test": 15}
        sizes |= {name: fields.pop(name) for name in sizes if name in fields}

        def split(count: int) -> Split:
            images = torch.randint(0, 256, (count, channels, 8, 8), dtype=torch.uint8, generator=generator)
            return Split(images, torch.randint(0, 3, (count,), generator=generator))

        splits = {name: split(count) for name, count in sizes.items()}
        plain: dict[str, Any] = {"name": "tiny", "class_names": ("a", "b", "c"), "augmentation": ()}
        plain |= {"mean": (0.4,) * channels, "std": (0.3,) * channels}
        return DataSet(**{**plain, **splits, **fields})

    return make


class Undone(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What torch's operators write into tensors inside is put back at the end, as capturing work does not do it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for value, declared in zip(args, func._schema.arguments, strict=False):
            if isinstance(value, Tensor) and declared.alias_info is not None and declared.alias_info.is_write:
                self.before.append((value, value.clone()))
        return func(*args, **(kwargs or {}))

    def put_back(self) -> None:
        for tensor, value in reversed(self.before):
            tensor.data.copy_(value)  # unseen by autograd, which may still need the tensor


class RerunRecorder:
    """Records as CUDA graphs of one pool do, on the CPU: a replay does the work again into the same tensors.

    A replay also makes useless what all the other pieces have given: it may lie in the memory that this one uses.
    """

    refuses: str | None = None

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.pieces: list[Sequence[Tensor]] = []
        self.replays = 0

    def aside(self, work: Callable[[], T]) -> T:
        return work()

    def record(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
        if self.refuses:
            raise RuntimeError(self.refuses)
        before = [buffer.clone() for buffer in self.net.buffers()]  # batch norm does not declare that it writes them
        with Undone() as writes:
            static = [tensor.clone() for tensor in work()]
        writes.put_back()
        for buffer, value in zip(self.net.buffers(), before, strict=True):
            buffer.data.copy_(value)
        spoil(static)
        self.pieces.append(static)

        def again() -> None:
            self.replays += 1
            for place, found in zip(static, work(), strict=True):
                place.copy_(found)
            for other in self.pieces:
                if other is not static:
                    spoil(other)

        return static, again


def spoil(tensors: Sequence[Tensor]) -> None:
    """Fill tensors with what nobody can use."""
    for tensor in tensors:
        tensor.fill_(float("nan") if tensor.is_floating_point() else -(10**6))


class RerunCapture:
    """Captures as a GPU does, on the CPU: recording does nothing, a replay does the work again into the same tensors.

    What was recorded before is made useless, as it is where one pool of memory serves all.
    """

    refuses: str | None = None

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.asides = self.captures = self.replays = 0
        self.static: Sequence[Tensor] = ()
        self.recorders: list[RerunRecorder] = []

    def recorder(self) -> RerunRecorder:
        self.recorders.append(RerunRecorder(self.net))
        return self.recorders[-1]

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
        spoil([*self.static, *static])
        self.static = static

        def again() -> None:
            assert self.static is static, "replayed after another capture"
            self.replays += 1
            self.net.zero_grad()  # a graph writes gradients, whatever is attached
            for place, found in zip(static, work(), strict=True):
                place.copy_(found)
            self.net.zero_grad()  # nor does it attach them

        return static, again


@pytest.fixture(autouse=True, scope="session")
def one_round() -> Iterator[None]:
    """Exported networks are timed once and not fifty times, but for the tests of the timing itself."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("trainonce.export.certificate.LATENCY_ROUNDS", 1)
        yield


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """Nothing waits for the disk: no test cuts the power, and a process that is killed loses nothing of what it wrote.

    What cannot be synchronised (a handle that is closed) is refused all the same.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[RerunCapture]:
    """Lets steps be captured on the CPU too; the list gets the capture of each training."""
    made: list[RerunCapture] = []

    def capture_for(net: nn.Module) -> RerunCapture:
        made.append(RerunCapture(net))
        return made[-1]

    monkeypatch.setattr("trainonce.training.loop.capture_for", capture_for)
    return made


@pytest.fixture(scope="session")
def rerun_capture() -> type[RerunCapture]:
    """What captures on the CPU: `rerun_capture(net)`."""
    return RerunCapture


@pytest.fixture(scope="session")
def assert_same() -> Callable[[RunDirectory, RunDirectory], None]:
    """Checks that two runs came to the same weights, momenta, teachers and metrics, to the last bit, but for time."""

    def outcome(run: RunDirectory) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
        found = checkpoint.load_latest(run.checkpoints)
        assert found is not None
        return found.tensors, timeless(run.metrics())

    def check(one: RunDirectory, other: RunDirectory) -> None:
        (tensors, metrics), (others, other_metrics) = outcome(one), outcome(other)
        assert tensors.keys() == others.keys()
        for group, named in tensors.items():
            assert named.keys() == others[group].keys()
            assert [name for name in named if not torch.equal(named[name], others[group][name])] == []
        assert metrics == other_metrics

    return check


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
