"""What the targets of TensorFlow Lite's file share: a network's operators, and the ranges of its maps."""

from collections.abc import Sequence

from torch import Tensor

from trainonce.export.description import FileDescription
from trainonce.export.onnx import FILE, description_in, parsed, tensor_ranges
from trainonce.tflite.graph import Graph, graph_in
from trainonce.tflite.int8 import Range


def graph_of(content: bytes) -> tuple[Graph, FileDescription]:
    """The operators of an ONNX file that `to_onnx` wrote, for one image, and what the file says of itself.

    Raises `UserError` for what has no operator here.
    """
    model = parsed(content, where=FILE)
    description = description_in(model, FILE)
    how = description.preprocessing
    images = (1, how.channels, how.resolution, how.resolution)
    return graph_in(model, images, layers=description.layers), description


def ranges_of(graph: Graph, content: bytes, calibrate: Sequence[Tensor]) -> dict[str, Range]:
    """The smallest and the largest value of each tensor over batches of images [B, C, H, W], by ONNX Runtime.

    `content` is the ONNX file that the graph was made of.
    """
    found = tensor_ranges(content, {node.output for node in graph.nodes} | {graph.given}, calibrate)
    for node in graph.nodes:
        if node.output not in found and node.options.get("activation") == "RELU6":  # inside a hard sigmoid
            found[node.output] = (0.0, 6.0)
    return found
