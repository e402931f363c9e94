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
from trainonce.export.description import Run, describe_file
from trainonce.export.integrity import judged
from trainonce.export.onnx import FILE, open_onnx
from trainonce.export.tools import weights_sha256
from trainonce.files import read_bytes
from trainonce.nn.plain import resize
from trainonce.subnets import read_subnet
from trainonce.subnets.description import Preprocessing

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network that is ready to classify image files."""

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    run: Run
    unchecked: str = ""
    """Where nothing says whether the network is whole: that, in a sentence."""

    def prepared(self, path: str | Path) -> Tensor:
        """An image file as the network's input, float32 [1, C, resolution, resolution].

        Treated as a training image is when it is scored: turned upright, central square, antialiased resize to the
        size of the training images, normalised, and brought to the network's resolution. Raises `UserError` that names
        the file.
        """
        how = self.preprocessing
        size = how.image_size or how.resolution
        pixels = decode_image(path, image_size=size, grey=how.channels == 1, interpolation=how.interpolation)
        x_1CHW = torch.from_numpy(np.array(pixels))[None]  # a copy: what Pillow gives may not be written
        return resize(normalise(x_1CHW, mean=how.mean, std=how.std), how.resolution)

    @torch.inference_mode()
    def predict(self, paths: Sequence[str | Path], top: int = 1) -> Iterator["Prediction"]:
        """Classify image files, in their order. A file that cannot be classified keeps no other from it."""
        for start in range(0, len(paths), BATCH):
            batch = [Path(path) for path in paths[start : start + BATCH]]
            inputs = [self._prepared_or_why(path) for path in batch]
            images = [x_1CHW for x_1CHW in inputs if isinstance(x_1CHW, Tensor)]
            logits = iter(self.run(torch.cat(images)) if images else ())
            for path, found in zip(batch, inputs, strict=True):
                yield self._likeliest(path, next(logits), top) if isinstance(found, Tensor) else Prediction(path, found)

    def _prepared_or_why(self, path: Path) -> Tensor | UserError:
        try:
            return self.prepared(path)
        except UserError as error:
            return error

    def _likeliest(self, path: Path, logits_K: Tensor, count: int) -> "Prediction":
        if not logits_K.isfinite().all():
            return Prediction(path, UserError(f"{path} gets logits that are not finite numbers: the network is broken"))
        values, indices = logits_K.softmax(0).topk(min(count, len(self.classes)))
        names = (self.classes[i] for i in indices.tolist())
        return Prediction(path, tuple(zip(names, values.tolist(), strict=True)))


@dataclass(frozen=True)
class Prediction:
    """What a network says of an image file."""

    path: Path
    found: tuple[tuple[str, float], ...] | UserError
    """The likeliest classes with their probabilities, the likeliest first; or why there are none."""


def open_classifier(path: str | Path) -> Classifier:
    """The classifier in a subnet's directory, computed by torch, or in an .onnx file, computed by ONNX Runtime.

    Raises `UserError` for anything else, for what is damaged or foreign, and where ONNX Runtime is not installed.
    """
    path = Path(path)
    if path.is_dir():
        network, description = read_subnet(path)
        file = describe_file(description, weights_sha256(network), where=str(path))
        return Classifier(classes=file.classes, preprocessing=file.preprocessing, run=network)
    if path.suffix != ".onnx":
        state = "is neither a subnet's directory nor an .onnx file" if path.exists() else "does not exist"
        raise UserError(f"{path} {state}: name what `trainonce extract` or `trainonce export --to onnx` wrote")
    content = read_bytes(path)
    verdict = judged(path, {path.name: content})
    if verdict.state == "damaged":
        raise UserError(verdict.why)
    opened = open_onnx({FILE: content}, torch.get_num_threads(), str(path))
    return Classifier(
        classes=opened.description.classes,
        preprocessing=opened.description.preprocessing,
        run=opened.run,
        unchecked=verdict.why if verdict.state == "unchecked" else "",
    )
