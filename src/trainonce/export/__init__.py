"""Export a subnet to a file that runs on a device, and prove that it is the same network.

Each target is a value of `TARGETS`: how its files are written and opened. `trainonce.export.exporting` writes them and
their certificate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainonce.export import (
    coreml,
    executorch,
    float16,
    int8,
    litert,
    ncnn,
    onnx,
    openvino,
    tflite_micro,
    torch_export,
)
from trainonce.export.description import FileDescription, Opened, Precision, Written
from trainonce.export.reference import Reference


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of exported file."""

    name: str
    """What `--to` calls it."""
    about: str
    """What it is, in a line."""
    extras: tuple[str, ...] = ()
    """The extras that writing and opening it need."""
    files: tuple[str, ...]
    """The names of its files; the first is the one to give to a runtime."""
    write: Callable[[Reference, float], Written]
    """Make the files of a subnet; the number is how many points of top-1 float16 and int8 may lose."""
    open: Callable[[Mapping[str, bytes], int, str], Opened]
    """Make files that were read ready to compute, with so many threads; the text names them in errors."""
    precision: Precision = "float32"
    """The numbers it computes in."""
    describe: Callable[[Mapping[str, bytes], str], FileDescription] | None = None
    """For files from disk that are not opened: their description, read without."""
    runs_here: bool = True
    """Whether there is a runtime that computes its files here; where not, no certificate says that they passed."""
    not_opened: str = "a .pt2 from disk is not opened, since that could unpickle; its hashes are the recorded ones"
    """What certificates say of files that are not opened."""


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="onnx",
            about="ONNX, opset 18, float32, any batch",
            extras=("onnx",),
            files=(onnx.FILE,),
            write=lambda reference, _: Written(files={onnx.FILE: reference.onnx}),
            open=onnx.open_onnx,
        ),
        Target(
            name="onnx-fp16",
            about="ONNX, float16 with float32 images and logits, any batch",
            extras=("onnx",),
            files=(onnx.FILE,),
            write=lambda reference, _: float16.write_float16(reference.onnx),
            open=onnx.open_onnx,
            precision="float16",
        ),
        Target(
            name="onnx-int8",
            about="ONNX, 8-bit integers (QDQ), any batch",
            extras=("onnx",),
            files=(onnx.FILE,),
            write=lambda reference, max_loss: int8.write_int8(reference, max_loss=max_loss),
            open=onnx.open_onnx,
            precision="int8",
        ),
        Target(
            name="openvino",
            about="OpenVINO, float32, any batch",
            extras=("onnx", "openvino"),
            files=(openvino.XML, openvino.BIN),
            write=lambda reference, _: openvino.write_openvino(reference.onnx),
            open=openvino.open_openvino,
        ),
        Target(
            name="openvino-int8",
            about="OpenVINO, 8-bit integers, any batch",
            extras=("onnx", "openvino"),
            files=(openvino.XML, openvino.BIN),
            write=lambda reference, max_loss: openvino.write_openvino_int8(reference, max_loss=max_loss),
            open=openvino.open_openvino,
            precision="int8",
        ),
        Target(
            name="executorch",
            about="ExecuTorch with XNNPACK, float32, one image a call",
            extras=("executorch",),
            files=(executorch.FILE, executorch.SIDECAR),
            write=lambda reference, _: executorch.write_executorch(reference.network, reference.file),
            open=executorch.open_executorch,
        ),
        Target(
            name="executorch-int8",
            about="ExecuTorch with XNNPACK, 8-bit integers, one image a call",
            extras=("executorch",),
            files=(executorch.FILE, executorch.SIDECAR),
            write=lambda reference, max_loss: executorch.write_executorch_int8(reference, max_loss=max_loss),
            open=executorch.open_executorch,
            precision="int8",
        ),
        Target(
            name="litert",
            about="LiteRT (TensorFlow Lite), float32, one image a call",
            extras=("onnx", "litert"),
            files=(litert.FILE,),
            write=lambda reference, _: litert.write_litert(reference),
            open=litert.open_litert,
        ),
        Target(
            name="litert-fp16",
            about="LiteRT (TensorFlow Lite), weights in float16, one image a call",
            extras=("onnx", "litert"),
            files=(litert.FILE,),
            write=lambda reference, _: litert.write_litert_fp16(reference),
            open=litert.open_litert,
            precision="float16",
        ),
        Target(
            name="litert-int8",
            about="LiteRT (TensorFlow Lite), 8-bit integers, one image a call",
            extras=("onnx", "litert"),
            files=(litert.FILE,),
            write=lambda reference, max_loss: litert.write_litert_int8(reference, max_loss=max_loss),
            open=litert.open_litert,
            precision="int8",
        ),
        Target(
            name="ncnn",
            about="ncnn, float32, one image a call",
            extras=("onnx", "ncnn"),
            files=(ncnn.PARAM, ncnn.BIN),
            write=lambda reference, _: ncnn.write_ncnn(reference.onnx),
            open=ncnn.open_ncnn,
        ),
        Target(
            name="ncnn-fp16",
            about="ncnn, weights in float16, one image a call",
            extras=("onnx", "ncnn"),
            files=(ncnn.PARAM, ncnn.BIN),
            write=lambda reference, _: ncnn.write_ncnn(reference.onnx, precision="float16"),
            open=ncnn.open_ncnn,
            precision="float16",
        ),
        Target(
            name="tflite-micro",
            about="LiteRT for Microcontrollers (TFLite Micro), 8-bit integers, one image a call",
            extras=("onnx", "tflite-micro"),
            files=(tflite_micro.FILE, tflite_micro.SIDECAR),
            write=lambda reference, max_loss: tflite_micro.write_tflite_micro(reference, max_loss=max_loss),
            open=tflite_micro.open_tflite_micro,
            precision="int8",
        ),
        Target(
            name="coreml",
            about="Core ML for Apple's systems, float32, one image a call; not run here",
            extras=("coreml",),
            files=(coreml.FILE,),
            write=lambda reference, _: coreml.write_coreml(reference),
            open=coreml.open_coreml,
            describe=coreml.description_in,
            runs_here=False,
            not_opened=coreml.NOT_RUN,
        ),
        Target(
            name="torch",
            about="torch.export, float32, any batch",
            files=(torch_export.FILE,),
            write=lambda reference, _: torch_export.write_torch_export(reference.program, reference.file),
            open=torch_export.open_torch_export,
            describe=torch_export.description_in,
        ),
    )
}
"""The targets by name."""
