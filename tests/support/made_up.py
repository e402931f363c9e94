"""Exports that were changed and yet hold together, with a seal and a certificate of their own; a made-up target."""

import hashlib
import json
from pathlib import Path
from typing import Any

from trainonce.export import Target
from trainonce.export.description import Opened, Precision, Written
from trainonce.export.onnx import FILE, SEAL
from trainonce.records import to_json


def replaced(place: Path, files: dict[str, bytes]) -> None:
    """Put files in the place of an export's, and their hashes into its certificate."""
    for name, content in files.items():
        (place / name).write_bytes(content)
    certificate = json.loads((place / "certificate.json").read_text(encoding="utf-8"))
    certificate["files"] = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    (place / "certificate.json").write_bytes(to_json(certificate))


def sealed(model: Any) -> dict[str, bytes]:
    """The file of an `onnx.ModelProto`, with the hash that is right for it."""
    del model.metadata_props[1:]
    return {FILE: SEAL.put(model.SerializeToString(deterministic=True))}


def shifted(by: float, precision: Precision = "float32") -> Target:
    """A target whose file is the extracted network with every logit moved."""

    def open_it(files: Any, _threads: int, _where: str) -> Opened:
        description = held[0].file.model_copy(update={"precision": precision})
        return Opened(description=description, run=lambda x: held[0].network(x) + by)

    def write(reference: Any, _max_loss: float) -> Written:
        held.append(reference)
        return Written(files={"file": b"content"})

    held: list[Any] = []
    return Target(name="shifted", about="", files=("file",), write=write, open=open_it, precision=precision)
