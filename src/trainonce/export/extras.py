"""What each target needs beside trainonce, so that it can be said before any work that it is missing."""

from importlib.util import find_spec

from trainonce.extras import try_import

MODULES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "litert": ("ai_edge_litert", "flatbuffers"),
    "ncnn": ("ncnn", "pnnx"),
    "tflite-micro": ("tflite_micro",),
}
"""The modules of each extra that export."""
EXTRAS = {
    **dict.fromkeys(("onnx", "onnx-int8", "onnx-fp16"), ("onnx",)),
    **dict.fromkeys(("openvino", "openvino-int8"), ("onnx", "openvino")),
    **dict.fromkeys(("executorch", "executorch-int8"), ("executorch",)),
    **dict.fromkeys(("litert", "litert-fp16", "litert-int8"), ("onnx", "litert")),
    **dict.fromkeys(("ncnn", "ncnn-fp16"), ("onnx", "ncnn")),
    "tflite-micro": ("onnx", "tflite-micro"),
}
"""The extras of each target; of one that is not named here it is found out when it is made."""


def require_extras(target: str) -> None:
    """Raise `UserError` that says how to install what a target needs, where that is missing."""
    missing = [extra for extra in EXTRAS.get(target, ()) if any(find_spec(name) is None for name in MODULES[extra])]
    if missing:
        with try_import(target, *missing):
            raise ImportError
