"""What runs a module on this machine: torch itself, or a runtime of exported files, with a fixed number of threads.

A runtime gets the files that an exported subnet has, which are written here directly: `trainonce.latency.bench` opens
them, here as on a machine that has nothing of trainonce.
"""

import math
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainonce.errors import UserError
from trainonce.extras import try_import
from trainonce.latency import bench
from trainonce.latency.bench import Call
from trainonce.latency.ncnn_graph import ncnn_files
from trainonce.latency.parts import PartModule
from trainonce.nn.onnx_graph import initializers_of, onnx_model
from trainonce.tflite.file import FileTensor, in_float32, to_tflite
from trainonce.tflite.graph import graph_in
from trainonce.tflite.int8 import in_int8
from trainonce.version import __version__

M = TypeVar("M", bound=nn.Module)
Shape = tuple[int, ...]
Prepare = Callable[[nn.Module, Shape], Call]
"""Makes of a module, which needs no weights, and the shape of its one input something that runs it once."""
TORCH = "torch"
RANGE = (-4.0, 4.0)
"""What all maps are said to reach where they are measured in int8: time does not follow from it."""


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A module as a runtime takes it, by the names that `trainonce.latency.bench` has for its files."""

    files: dict[str, bytes]
    weights: list[NDArray[Any]]
    """The weights, as their bytes stand in the files, in the order of each file."""


Write = Callable[[nn.Module, Shape], ModelFiles]
"""Writes a module with weights, in evaluation mode, that takes one float32 tensor of this shape."""


def _as_onnx(module: nn.Module, shape: Shape) -> ModelFiles:
    model = onnx_model(module, shape)
    return ModelFiles(files={bench.ONNX: model.SerializeToString()}, weights=list(initializers_of(model).values()))


def _as_tflite(module: nn.Module, shape: Shape, *, int8: bool = False) -> ModelFiles:
    """Parts take and give their maps as they are inside a network; whole networks images and logits as files do."""
    from ai_edge_litert import schema_py_generated as schema

    whole = not isinstance(module, PartModule)
    graph = graph_in(onnx_model(module, shape), shape, turned=whole)
    if int8:
        ranges = dict.fromkeys([graph.given, *(node.output for node in graph.nodes)], RANGE)
        made = in_int8(graph, ranges, in_float=lambda _: False, ends="FLOAT32" if whole else "INT8")
        made.tensors = {name: _of_one_scale(tensor) for name, tensor in made.tensors.items()}
    else:
        made = in_float32(graph)
    weights = [tensor.value for tensor in made.tensors.values() if tensor.value is not None]
    return ModelFiles(files={bench.TFLITE: to_tflite(made, schema, named=False)}, weights=weights)


def _of_one_scale(tensor: FileTensor) -> FileTensor:
    """With the same scale for every channel, of which nothing has to be kept where it is packed."""
    if tensor.scales is None:
        return tensor
    return replace(tensor, scales=np.full_like(tensor.scales, tensor.scales.max()))


def _as_tflite_int8(module: nn.Module, shape: Shape) -> ModelFiles:
    return _as_tflite(module, shape, int8=True)


def _as_ncnn(module: nn.Module, shape: Shape) -> ModelFiles:
    model = onnx_model(module, shape)
    param, weights = ncnn_files(model, shape)
    return ModelFiles(files={bench.PARAM: param, bench.BIN: weights}, weights=list(initializers_of(model).values()))


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime of files."""

    write: Write
    extras: tuple[str, ...]
    targets: tuple[str, ...]
    """The export targets whose files a table of this runtime speaks of."""
    packages: tuple[str, ...] = ("onnx",)
    """What the files are made with, beside torch."""
    one_image: bool = False
    """Whether its files take one image a call."""


FILE_RUNTIMES = {
    "onnxruntime": Runtime(write=_as_onnx, extras=("onnx",), targets=("onnx",)),
    "openvino": Runtime(write=_as_onnx, extras=("onnx", "openvino"), targets=("openvino",)),
    "litert": Runtime(write=_as_tflite, extras=("onnx", "litert"), targets=("litert", "litert-fp16"), one_image=True),
    "litert-int8": Runtime(write=_as_tflite_int8, extras=("onnx", "litert"), targets=("litert-int8",), one_image=True),
    "ncnn": Runtime(write=_as_ncnn, extras=("onnx", "ncnn"), targets=("ncnn",), one_image=True),
}
"""By the names that `trainonce.latency.bench` has for them."""
TARGETS_OF = {name: runtime.targets for name, runtime in FILE_RUNTIMES.items()} | {TORCH: (TORCH,)}
"""By each runtime's name the export targets whose files a table of it speaks of."""
RUNTIMES = ("onnxruntime", TORCH, "openvino", "litert", "litert-int8", "ncnn")
"""Their names, and torch's."""


def runtime_named(name: str) -> Runtime | None:
    """The runtime of that name; None for torch, which runs modules. Raises `UserError` for an unknown name."""
    if name not in RUNTIMES:
        raise UserError(f"unknown runtime {name!r}; the runtimes are {', '.join(RUNTIMES)}")
    return FILE_RUNTIMES.get(name)


def make_runtime(name: str, *, threads: int) -> Prepare:
    """What prepares modules for a runtime. Raises `UserError` for an unknown name and without the extra."""
    runtime = runtime_named(name)
    if runtime is None:
        return _torch
    with try_import(f"the runtime {name}", *runtime.extras):
        open_ = bench.RUNTIMES[name][0](threads)

    def prepare(module: nn.Module, shape: Shape) -> Call:
        return open_(model_files(name, module, shape).files, shape)

    return prepare


def model_files(name: str, module: nn.Module, shape: Shape) -> ModelFiles:
    """A module, which needs no weights, as files of a runtime, with random weights.

    Raises `UserError` without the extras, for torch, which has no files, and for several images in a call where the
    files take one.
    """
    runtime = runtime_named(name)
    if runtime is None:
        raise UserError("torch runs modules, not files: choose another runtime")
    if runtime.one_image and shape[0] != 1:
        raise UserError(f"files of {name} take one image a call: --batch 1")
    with try_import(f"the runtime {name}", *runtime.extras):
        return runtime.write(with_random_weights(module), shape)


def _torch(module: nn.Module, shape: Shape) -> Call:
    """The module as `load` gives it: float32, channels outermost, under inference mode."""
    x, module = torch.from_numpy(bench.numbers(shape)), with_random_weights(module)

    def call() -> Tensor:
        with torch.inference_mode():
            out: Tensor = module(x)
            return out

    return call


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Inside, torch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_random_weights(module: M) -> M:
    """A module that has sizes only (on torch's meta device), with weights and in evaluation mode.

    They are random and of a kind that keeps values near 1: what an untrained supernet computes dwindles from layer to
    layer to numbers with which processors are slow. Global generators are left alone.
    """
    module = module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.ndim > 1:  # of variance 2 / inputs
                bound = math.sqrt(6 / tensor[0].numel())
                tensor.uniform_(-bound, bound, generator=generator)
            elif tensor.is_floating_point():
                tensor.fill_(0.0 if name.endswith(("bias", "running_mean")) else 1.0)
            else:
                tensor.zero_()
    return module.eval()


def versions_of(name: str) -> dict[str, str]:
    """The versions that a measurement with this runtime depends on."""
    made_by = made_with(name)
    package = () if name == TORCH else (bench.RUNTIMES[name][1],)
    return {"python": platform.python_version(), **made_by, **{one: bench.version_of(one) for one in package}}


def made_with(name: str) -> dict[str, str]:
    """The versions of what makes the networks that a runtime runs."""
    runtime = runtime_named(name)
    found = {"trainonce": __version__, "torch": str(torch.__version__)}
    return found | {package: bench.version_of(package) for package in (runtime.packages if runtime else ())}
