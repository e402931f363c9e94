"""What runs a module on this machine: torch itself, ONNX Runtime or OpenVINO, each with a fixed number of threads."""

import math
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainonce.errors import UserError
from trainonce.extras import try_import
from trainonce.latency.onnx_graph import onnx_bytes
from trainonce.version import __version__

M = TypeVar("M", bound=nn.Module)
Shape = tuple[int, ...]
Call = Callable[[], object]
Prepare = Callable[[nn.Module, Shape], Call]
"""Makes of a module, which needs no weights, and the shape of its one input something that runs it once."""


def _torch(threads: int) -> Prepare:
    """The module as `load` gives it: float32, channels outermost, under inference mode."""

    def prepare(module: nn.Module, shape: Shape) -> Call:
        x, module = _input(shape), module.eval()

        def call() -> Tensor:
            with torch.inference_mode():
                out: Tensor = module(x)
                return out

        return call

    return prepare


def _onnxruntime(threads: int) -> Prepare:
    with try_import("the runtime onnxruntime", "onnx"):
        import onnxruntime

    def prepare(module: nn.Module, shape: Shape) -> Call:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        content = onnx_bytes(module, shape)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        feed = {"input": _input(shape).numpy()}
        return lambda: session.run(None, feed)

    return prepare


def _openvino(threads: int) -> Prepare:
    with try_import("the runtime openvino", "onnx", "openvino"):
        import openvino
    core = openvino.Core()
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }

    def prepare(module: nn.Module, shape: Shape) -> Call:
        request = core.compile_model(core.read_model(onnx_bytes(module, shape)), "CPU", config).create_infer_request()
        x = _input(shape).numpy()
        return lambda: request.infer([x], share_inputs=True)

    return prepare


RUNTIMES: dict[str, Callable[[int], Prepare]] = {"onnxruntime": _onnxruntime, "torch": _torch, "openvino": _openvino}
"""By name: what prepares modules to run with a number of threads."""


def make_runtime(name: str, *, threads: int) -> Prepare:
    """What prepares modules for a runtime. Raises `UserError` for an unknown name and without the extra."""
    if name not in RUNTIMES:
        raise UserError(f"unknown runtime {name!r}; the runtimes are {', '.join(RUNTIMES)}")
    prepare = RUNTIMES[name](threads)
    return lambda module, shape: prepare(with_random_weights(module), shape)


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


def _input(shape: Shape) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def versions_of(name: str) -> dict[str, str]:
    """The versions that a measurement with this runtime depends on."""
    found = {"trainonce": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    for package in {"onnxruntime": ["onnxruntime", "onnx"], "openvino": ["openvino", "onnx"]}.get(name, []):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # installed without metadata
            found[package] = "unknown"
    return found


def this_machine() -> dict[str, str | int | None]:
    """The processor's name, the cores that this process may use, and the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu_name(), "cores": cores, "system": f"{platform.system()} {platform.machine()}"}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
