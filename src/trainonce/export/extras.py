"""What each target needs beside trainonce, so that it can be said before any work that it is missing."""

from importlib.util import find_spec

from trainonce.export import Target
from trainonce.extras import try_import

MODULES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "coreml": ("coremltools",),
    "litert": ("ai_edge_litert", "flatbuffers"),
    "ncnn": ("ncnn", "pnnx"),
    "tflite-micro": ("tflite_micro",),
}
"""The modules of each extra that export."""


def require_extras(target: Target) -> None:
    """Raise `UserError` that says how to install what a target needs, where that is missing."""
    missing = [extra for extra in target.extras if any(find_spec(name) is None for name in MODULES[extra])]
    if missing:
        with try_import(target.name, *missing):
            raise ImportError
