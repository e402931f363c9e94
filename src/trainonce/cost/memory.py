"""What a plain network needs of memory: its activations at their peak, and its weights on disk, exactly.

Activations are counted in the order in which the network runs, for one image, by these rules, which are those of a
runtime that plans its memory:

- A convolution, the batch norm after it and their activation are one operation; its output is a map beside its input.
- What works on each value by itself writes over its input: activations, squeeze-excite's scaling of the map, the
  addition of a residual. Flattening and dropout do nothing.
- A map is there from the operation that makes it until the last that reads it: a block's input until its addition.

Weights, and what an operation uses inside itself, are not counted. The image has the network's own resolution.
"""

import json
import math
from functools import singledispatch
from typing import NamedTuple

import torch
from torch import nn

from trainonce.cost.liveness import traced_peak
from trainonce.limits import refuse_beyond_memory
from trainonce.nn.kinds import PlainSpec

WEIGHTS_METADATA = {"format": "pt"}
"""What the file of a subnet's weights says of itself: that its tensors are torch's."""
SAFETENSORS_TYPES = {torch.float32: "F32", torch.int64: "I64"}
BYTES_PER_VALUE = {"float32": 4, "float16": 2, "int8": 1}
"""What a weight and a value of an activation take in the numbers that a network computes in."""


def peak_memory(spec: PlainSpec, *, bytes_per_value: int = 4) -> int:
    """Peak bytes of the activations that are live at once for one image: 4 bytes a value in float32, 1 in int8."""
    return bytes_per_value * peak_values(spec)


@singledispatch
def peak_values(spec: PlainSpec) -> int:
    """The most values that are live at once for one image, by tracing the network.

    Raises `UserError` for a network that torch.fx cannot trace. Kinds with a closed form register it here.
    """
    return traced_peak(spec)


def refuse_large_batch(images: int, spec: PlainSpec, image_size: int) -> None:
    """Raise `UserError` where a batch, as images or as the maps of a network, is more than the memory there is.

    What training keeps besides is not counted: only what cannot fit is refused.
    """
    pixels = spec.in_channels * image_size**2
    refuse_beyond_memory(
        images * max(5 * pixels, peak_memory(spec)),  # a pixel is a byte on its way in, and four as a float32
        f"a batch of {images} images of {image_size} x {image_size} pixels, in the network {spec.resolution} x "
        f"{spec.resolution},",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up: Python's, numpy's, or torch's on the CPU or a GPU."""
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return on_cpu or isinstance(error, MemoryError | torch.OutOfMemoryError)


class TensorShape(NamedTuple):
    """A tensor of a network's state."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def shapes_in(module: nn.Module, under: str = "") -> list[TensorShape]:
    """The tensors of a module's state, their names below `under`."""
    return [TensorShape(under + name, tuple(t.shape), t.dtype) for name, t in module.state_dict().items()]


@singledispatch
def tensors_of(spec: PlainSpec) -> list[TensorShape]:
    """The tensors of a plain network's state, by building it without memory. Kinds with a quicker way register it."""
    with torch.device("meta"):
        return shapes_in(spec.build())


def model_size(spec: PlainSpec, *, bytes_per_value: int = 4) -> int:
    """Bytes of `model.safetensors` of an extracted subnet: its tensors in float32 and the file's header.

    With fewer bytes a value, about what a file in such numbers takes: matrices and kernels have so many, the rest
    (biases, statistics, scales) four, and the header stays.
    """
    ordered = sorted(tensors_of(spec), key=lambda one: (-one.dtype.itemsize, one.name))  # as safetensors writes them
    header: dict[str, object] = {"__metadata__": WEIGHTS_METADATA}
    total = 0
    for name, shape, dtype in ordered:
        end = total + math.prod(shape) * (bytes_per_value if len(shape) > 1 else dtype.itemsize)
        header[name] = {"dtype": SAFETENSORS_TYPES[dtype], "shape": list(shape), "data_offsets": [total, end]}
        total = end
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + total
