"""Classes for image files, from a subnet's directory or from an ONNX file that was exported from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainonce.data.augment import normalise
from trainonce.data.decode import decode_image
from trainonce.errors import UserError
from trainonce.export.description import Preprocessing, Run, describe_file
from trainonce.export.onnx import FILE, open_onnx
from trainonce.export.tools import weights_sha256
from trainonce.files import read_bytes
from trainonce.nn.plain import resize
from trainonce.subnet import read_subnet

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network that is ready to classify image files."""

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    run: Run

    def prepared(self, path: Path) -> Tensor:
        """An image file as the network's input, float32 [1, C, resolution, resolution].

        Treated as a training image is when it is scored: turned upright, central square, antialiased resize to the
        size of the training images, normalised, and brought to the network's resolution. Raises `UserError` that names
        the file.
        """
        how = self.preprocessing
        size = how.image_size or how.resolution
        pixels = decode_image(path, image_size=size, grey=how.channels == 1)
        x_1CHW = torch.from_numpy(np.array(pixels))[None]  # a copy: what Pillow gives may not be written
        return resize(normalise(x_1CHW, mean=how.mean, std=how.std), how.resolution)

    @torch.inference_mode()
    def probabilities(self, paths: Sequence[Path]) -> Iterator[Tensor]:
        """For each file the probability of each class, [classes], by softmax. Raises `UserError` for a bad file."""
        for start in range(0, len(paths), BATCH):
            logits_BK = self.run(torch.cat([self.prepared(path) for path in paths[start : start + BATCH]]))
            yield from logits_BK.softmax(1)


def open_classifier(path: Path) -> Classifier:
    """The classifier in a subnet's directory, computed by torch, or in an .onnx file, computed by ONNX Runtime.

    Raises `UserError` for anything else, for what is damaged or foreign, and where ONNX Runtime is not installed.
    """
    if path.is_dir():
        network, description = read_subnet(path)
        file = describe_file(description, weights_sha256(network), where=str(path))
        return Classifier(classes=file.classes, preprocessing=file.preprocessing, run=network)
    if path.suffix != ".onnx":
        state = "is neither a subnet's directory nor an .onnx file" if path.exists() else "does not exist"
        raise UserError(f"{path} {state}: name what `trainonce extract` or `trainonce export --to onnx` wrote")
    opened = open_onnx({FILE: read_bytes(path)}, torch.get_num_threads(), str(path))
    return Classifier(
        classes=opened.description.classes, preprocessing=opened.description.preprocessing, run=opened.run
    )


def best(classifier: Classifier, probabilities_K: Tensor, count: int) -> list[tuple[str, float]]:
    """The `count` likeliest classes and their probabilities, the likeliest first."""
    values, indices = probabilities_K.topk(min(count, len(classifier.classes)))
    return [(classifier.classes[i], value) for i, value in zip(indices.tolist(), values.tolist(), strict=True)]
