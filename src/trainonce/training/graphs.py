"""Steps captured once as a CUDA graph and then replayed, where one subnet is trained for many steps.

Where every step trains other subnets, `trainonce.training.block_graphs` replays their blocks instead.

A step of a small network is hundreds of launches, and a GPU waits for the host to make them; a replay is one.
Captured are forward, loss and backward. Augmentation, the exchange between ranks, the optimizer and the sums stay
outside: they are few launches, and what they draw or write changes from step to step.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from trainonce.errors import RunError
from trainonce.nn.dropout import DrawnMasks, HeldMasks
from trainonce.nn.lending import Lent
from trainonce.parallel.distributed import BatchShard
from trainonce.recipes import Phase, slot_named
from trainonce.space import SearchSpace

T = TypeVar("T")
Passes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images and labels, the losses [S] and hits of a step, whose gradients are left in the parameters."""


class Recorder(Protocol):
    """How a device captures many pieces of work, and does any of them again in any order, one at a time.

    A replay may destroy what the other pieces have given, and does so to whatever they left for later: of two pieces of
    which one needs what the other left, no third may be replayed in between.
    """

    def aside(self, work: Callable[[], T]) -> T:
        """Do the work, in the way that readies the device for recording it."""

    def record(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
        """Record `work` without doing it: the tensors that it gives, and what does it again into the same tensors."""


class Capture(Protocol):
    """How a device captures work and does it again."""

    def recorder(self) -> Recorder:
        """A recorder whose pieces disturb nobody else's."""

    def aside(self, passes: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Do the work, in the way that readies the device for capturing it."""

    def capture(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
        """Record `work` without doing it: the tensors that it gives, and what does it again into the same tensors.

        The tensors hold nothing of use until then. What was captured before must not be replayed any more.
        """


class CudaCapture:
    """Capturing by CUDA graphs, one after the other in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.own = CudaRecorder(self.stream)
        self.again: Callable[[], None] | None = None

    def recorder(self) -> "CudaRecorder":
        """One with a pool of its own, on the same stream."""
        return CudaRecorder(self.stream)

    def aside(self, passes: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Do the work on the stream that captures, so that the libraries' workspaces for it are there."""
        return self.own.aside(passes)

    def capture(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
        """Capture `work`. Waits for the device, once."""
        static, again = self.own.record(work)
        # The graph before goes only now: a pool that no graph uses cannot be captured into before it is emptied.
        self.again = again
        return static, again


class CudaRecorder:
    """Recording by CUDA graphs that share a pool of memory of their own and stay as long as someone can replay them."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = stream

    def aside(self, work: Callable[[], T]) -> T:
        """Do the work on the stream that captures, after what the current one has to do and before what it will have.

        What it allocates is that stream's, and the next work on it waits for all that uses it: nothing is overwritten.
        """
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            found = work()
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
        return found

    def record(self, work: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
        """Capture `work`. Waits for the device."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads ask of the device meanwhile, as nccl's watchdog does, is no error.
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            static = work()
        return static, graph.replay


def capture_for(net: nn.Module) -> Capture | None:
    """How steps of a network are captured on the device where it is; None where they cannot be."""
    device = next(net.parameters()).device
    return CudaCapture(device) if device.type == "cuda" else None


def holds_one_subnet(phase: Phase, space: SearchSpace) -> bool:
    """Whether a phase on `space` trains one subnet for an epoch or longer, on labels.

    Then its steps do the same but for their data.
    """
    if phase.target != "labels" or len(phase.subnets) != 1:
        return False
    slot = slot_named(phase.subnets[0])
    if slot.candidates > 1:  # each step tries them first
        return False
    return phase.hold == "epoch" or slot.always is not None or space.count() == 1


def not_captured(what: str, error: RuntimeError) -> RunError:
    """What is said where a device refuses to capture."""
    first_line = str(error).partition("\n")[0]
    return RunError(f"{what} could not be captured as a CUDA graph ({first_line}); --no-cuda-graphs does without")


class StepGraph:
    """The passes of steps that do the same for a while: done once, then captured, then replayed.

    Nothing has to be put back for warming up, since that is the first such step itself.
    """

    def __init__(self, net: nn.Module, lent: Lent, shard: BatchShard, capture: Capture) -> None:
        self.net, self.lent, self.shard, self.capture = net, lent, shard, capture
        self.key: Hashable = None
        self.captured: _Captured | None = None

    def run(
        self, key: Hashable, passes: Passes, x_BCHW: Tensor, y_B: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """What `passes` gives for a batch, with masks of dropout from `generator`; leaves the step's gradients.

        Steps of one `key` must do the same but for their data, and begin with gradients of None. Raises `RunError`
        where they cannot be captured.
        """
        if key != self.key:
            self.key, self.captured = key, None
            with self.lent.step(DrawnMasks(generator, self.shard)):
                return self.capture.aside(lambda: passes(x_BCHW, y_B))
        if self.captured is None:
            self.captured = _Captured(self, passes, x_BCHW, y_B)
        return self.captured.replay(x_BCHW, y_B, generator)


class ForwardGraph:
    """What a frozen network gives for batches of one size: computed once, then captured, then replayed."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.key: Hashable = None
        self.captured: tuple[Tensor, Tensor, Callable[[], None]] | None = None

    def run(self, network: nn.Module, forward: Callable[[Tensor], Tensor], x_BCHW: Tensor) -> Tensor:
        """Give `forward(x_BCHW)`, which is that of `network`; it is good until the next call.

        Raises `RunError` where it cannot be captured.
        """
        key = (network, x_BCHW.shape, x_BCHW.stride())
        if key != self.key:
            self.key, self.captured, self.recorder = key, None, self.capture.recorder()
            return self.recorder.aside(lambda: forward(x_BCHW))
        if self.captured is None:
            x_static = x_BCHW.clone()
            try:
                (out_BK,), again = self.recorder.record(lambda: [forward(x_static)])
            except RuntimeError as error:
                raise not_captured("the teacher", error) from error
            self.captured = x_static, out_BK, again
        x_static, out_BK, again = self.captured
        x_static.copy_(x_BCHW)
        again()
        return out_BK


class _Captured:
    """What a captured step reads and writes, at fixed places."""

    def __init__(self, step: StepGraph, passes: Passes, x_BCHW: Tensor, y_B: Tensor) -> None:
        self.x_BCHW, self.y_B = x_BCHW.clone(), y_B.clone()
        self.masks = HeldMasks(step.shard)
        x_static, y_static, masks = self.x_BCHW, self.y_B, self.masks  # no cycle: all goes when this does

        def work() -> list[Tensor]:
            with step.lent.step(masks):
                losses_S, hits = passes(x_static, y_static)
            return [losses_S, hits, *(p.grad for p in step.net.parameters() if p.grad is not None)]

        try:
            static, self.again = step.capture.capture(work)
        except RuntimeError as error:
            raise not_captured("a training step", error) from error
        self.losses_S, self.hits, *gradients = static
        # The gradients were made while capturing, so they lie in the graph's memory, where replays write them.
        self.gradients = list(zip((p for p in step.net.parameters() if p.grad is not None), gradients, strict=True))

    def replay(self, x_BCHW: Tensor, y_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Do the step for another batch; what it gives is a copy, which the next replay leaves alone."""
        self.x_BCHW.copy_(x_BCHW)
        self.y_B.copy_(y_B)
        self.masks.draw(generator)
        self.again()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.losses_S.clone(), self.hits.clone()
