"""`trainonce predict`: image files classified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainonce.cli import display, known
from trainonce.cli.options import Json
from trainonce.cli.stopping import importing
from trainonce.errors import RunError, UserError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from trainonce.settings import JsonObject


def predict(
    model: Annotated[
        Path,
        typer.Argument(metavar="SUBNET|FILE.onnx", help="A subnet's directory or its ONNX file.", show_default=False),
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help=f"{known.PICTURES} files.", show_default=False)
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each image.")] = 1,
    as_json: Json = False,
) -> None:
    """Classify image files, with torch from a subnet's directory or with ONNX Runtime from its ONNX file."""
    with importing():
        from trainonce.export.predict import open_classifier

    classifier = open_classifier(model)
    if classifier.unchecked:
        display.err.print(f"Note: {classifier.unchecked}.")
    answers: list[JsonObject] = []
    for answer in classifier.predict(images, top):
        if isinstance(answer.found, UserError):
            answers.append({"image": str(answer.path), "error": str(answer.found)})
            display.err.print(f"{answer.found}.")
            continue
        classes: list[JsonValue] = [{"class": name, "probability": p} for name, p in answer.found]
        answers.append({"image": str(answer.path), "classes": classes})
        if not as_json:
            said = ", ".join(f"{name} {100 * p:.1f}%" for name, p in answer.found)
            display.out.print(f"{answer.path}: {said}")
    if as_json:
        display.print_json({"model": str(model), "predictions": answers})
    bad = sum("error" in answer for answer in answers)
    if bad:
        raise RunError(f"{bad} of {len(images)} images could not be classified")
