"""Core ML: an ML program for Apple's systems, written wherever coremltools runs and computed here nowhere.

A package is a folder; it is exported as one archive, to be unpacked where it is used, so that it has one hash and comes
whole or not at all.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from trainonce.errors import UserError
from trainonce.export.description import INPUT, KEY, OUTPUT, FileDescription, Opened, Written
from trainonce.export.reference import Reference
from trainonce.export.tools import hushed, quiet, sentence
from trainonce.export.torch_export import sealed_archive
from trainonce.extras import try_import
from trainonce.files import ZIP_ERRORS

PACKAGE = "model.mlpackage"
FILE = f"{PACKAGE}.zip"
NOTE = f"{KEY}.json"
"""Where the description lies in the archive, beside the package; the package's own metadata have it too."""
EXTRA = "coreml"
NOT_RUN = "not run here: Core ML computes on Apple's systems alone"
PARTS = ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin")


def write_coreml(reference: Reference) -> Written:
    """The package for one image a call, in float32.

    Raises `UserError` without the extra, and for a network that coremltools cannot write.
    """
    with try_import("this", EXTRA, told=True), quiet(), hushed():
        import coremltools
    description = reference.file.model_copy(update={"batch": 1})
    how = description.preprocessing
    example_BCHW = torch.zeros(1, how.channels, how.resolution, how.resolution)
    with quiet(), hushed(), torch.no_grad():
        program = torch.export.export(reference.network, (example_BCHW,)).run_decompositions({})
        with sentence(
            "coremltools writes no package of this network", (*ZIP_ERRORS, RuntimeError, ValueError, TypeError)
        ):
            model = coremltools.convert(
                program,
                inputs=[coremltools.TensorType(name=INPUT, shape=tuple(example_BCHW.shape))],
                outputs=[coremltools.TensorType(name=OUTPUT)],
                convert_to="mlprogram",
                compute_precision=coremltools.precision.FLOAT32,
                minimum_deployment_target=coremltools.target.iOS15,
                skip_model_load=True,
            )
        model.user_defined_metadata[KEY] = description.to_text()
        with TemporaryDirectory() as folder:
            path = Path(folder) / PACKAGE
            model.save(str(path))
            parts = {name: (path / name).read_bytes() for name in PARTS}
    return Written(files={FILE: _archive(parts, description)})


def _archive(parts: Mapping[str, bytes], description: FileDescription) -> bytes:
    """The package and the description, not compressed, sealed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {NOTE: description.to_text().encode(), **parts}.items():
            place = name if name == NOTE else f"{PACKAGE}/{name}"
            archive.writestr(zipfile.ZipInfo(place), content)  # of no time, so that equal packages are equal archives
    return sealed_archive(buffer.getvalue())


def description_in(files: Mapping[str, bytes], where: str) -> FileDescription:
    """The description in an archive, of which nothing else is read.

    Raises `UserError` for a damaged or foreign file.
    """
    with sentence(f"{where} does not hold a description that can be read", ZIP_ERRORS):
        text = zipfile.ZipFile(io.BytesIO(files[FILE])).read(NOTE).decode()
    return FileDescription.from_text(text, where=where)


def open_coreml(files: Mapping[str, bytes], threads: int, where: str) -> Opened:
    """Raises `UserError`: there is no runtime for it but Apple's."""
    raise UserError(f"{where} is {NOT_RUN}")
