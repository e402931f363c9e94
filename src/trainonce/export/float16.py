"""ONNX in float16: half the file, and what graphics processors compute fastest, in a browser too.

Weights and maps are float16, images and logits float32. ONNX Runtime on a CPU computes many operators of it in float32,
with maps rounded between them.
"""

from trainonce.export.description import Written
from trainonce.export.onnx import EXTRA, FILE, description_in, parsed, redescribed
from trainonce.export.tools import quiet
from trainonce.extras import try_import


def write_float16(content: bytes) -> Written:
    """The float16 file of an ONNX file of `to_onnx`, by ONNX Runtime's converter. Raises `UserError` without the extra.

    A weight beyond 65504, float16's largest number, becomes that; a map beyond it becomes infinite, and the file does
    not pass.
    """
    with try_import("this", EXTRA, told=True), quiet():
        from onnxruntime.transformers.float16 import convert_float_to_float16
    model = parsed(content, where=FILE)
    description = description_in(model, FILE)
    with quiet():
        half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    written = half.SerializeToString(deterministic=True)
    return Written(files={FILE: redescribed(written, description.model_copy(update={"precision": "float16"}))})
