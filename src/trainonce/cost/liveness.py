"""The activations of any network at their peak, followed through its operations one at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from trainonce.nn.kinds import PlainSpec

UNTAGGED = ("aten::hardswish", "aten::native_batch_norm", "aten::_native_batch_norm", "aten::batch_norm")
"""Operations on each value by itself that torch does not tag as such."""


@dataclass(eq=False, frozen=True)
class _Map:
    """What an operation makes of the image: which it is, the maps that it reads, and how many values it makes."""

    operation: OpOverload | None
    reads: tuple["_Map", ...]
    values: int

    @property
    def is_view(self) -> bool:
        """Whether it lies in the memory of the first map that is read."""
        arguments = self.operation._schema.arguments if self.operation else ()
        return any(a.alias_info is not None and not a.alias_info.is_write for a in arguments)

    @property
    def memory(self) -> "_Map":
        """The map whose memory it lies in."""
        return self.reads[0].memory if self.is_view else self

    @property
    def in_place(self) -> bool:
        """Whether the operation works on each value by itself."""
        if self.operation is None:
            return False
        return torch.Tag.pointwise in self.operation.tags or self.operation._schema.name.startswith(UNTAGGED)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations that follow from an image, in order."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.maps = [_Map(None, (), image.numel())]
        self._of = {id(image): self.maps[0]}
        self._kept = [image]  # so that no other tensor gets its id

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        reads = dict.fromkeys(self._of[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._of)
        outputs = list(_tensors(made))
        if reads and outputs:
            self.maps.append(_Map(func, tuple(reads), outputs[0].numel()))
            self._of |= {id(tensor): self.maps[-1] for tensor in outputs}
            self._kept += outputs
        return made


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in an operation's arguments or outputs."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


@lru_cache(maxsize=1024)
def traced_peak(spec: PlainSpec) -> int:
    """The most values that are live at once for one image, by the rules of `trainonce.cost.memory`.

    The network is run once without numbers. What works on each value by itself, batch norms among it, writes over an
    input of its output's size that nothing reads any more; views are their input.
    """
    with torch.device("meta"):
        network = spec.build().eval()
        image = torch.empty(1, spec.in_channels, spec.resolution, spec.resolution)
    with torch.no_grad(), _Recorder(image) as recorder:
        network(image)
    last_read: dict[_Map, int] = {}
    for now, made in enumerate(recorder.maps):  # a map is there as long as it, or a view of it, is read
        last_read |= {read.memory: now for read in made.reads}
    live: dict[_Map, int] = {}
    peak = 0
    for now, made in enumerate(recorder.maps):
        if made.is_view:
            continue
        read = [one.memory for one in made.reads]
        dying = [one for one in read if last_read[one] <= now and live.get(one) == made.values]
        if dying and made.in_place:
            del live[dying[-1]]
        live[made] = made.values
        peak = max(peak, sum(live.values()))
        live = {one: values for one, values in live.items() if last_read.get(one, -1) > now or one is made}
    return peak
