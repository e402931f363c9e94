"""Whether an exported file is the one that was written: by the hash that it carries, and by the certificate beside it.

Nothing here opens a file with its runtime, so that what is damaged is refused before a runtime sees it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainonce.errors import UserError
from trainonce.export import litert, ncnn, onnx, openvino, sidecar, torch_export
from trainonce.export.certificate import FILE as CERTIFICATE
from trainonce.export.certificate import Certificate
from trainonce.files import read_bytes

PARTNERS: Mapping[str, tuple[str, ...]] = {
    ".xml": (".bin",),
    ".param": (".bin",),
    ".bin": (".xml", ".param"),
    ".pte": (".json",),
    ".tflite": (".json",),
    ".json": (".pte", ".tflite"),
}
"""Of files that belong together and have one name: the suffixes that the other may have."""

DESCRIBED = b"trainonce-export-"
"""What a description names as its format begins with this, in every version."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What can be said of an exported file, and why, in a sentence that names it."""

    state: Literal["whole", "damaged", "unchecked"]
    why: str


def check_file(path: Path) -> Verdict:
    """What can be said of a file of any target, under any name; the certificate beside it is no such file.

    Raises `UserError` where there is no file or where it cannot be read.
    """
    partners = [path.with_suffix(suffix) for suffix in PARTNERS.get(path.suffix, ())]
    return judged(path, {each.name: read_bytes(each) for each in (path, *partners) if each == path or each.exists()})


def judged(path: Path, files: Mapping[str, bytes]) -> Verdict:
    """What can be said of the file at `path`, whose content and that of its partner are in `files`, by name."""
    found, certified, no_certificate = _carried(path, files), None, "no certificate beside it names it"
    if (path.parent / CERTIFICATE).exists():
        try:
            certified = _certified(path, files[path.name])
        except UserError as error:
            no_certificate = f"its certificate cannot be used: {error}"
    if found is False:
        return Verdict(
            state="damaged", why=f"{path} is damaged or was edited: its content is not what its hash was made of"
        )
    if certified is False:
        return Verdict(
            state="damaged",
            why=f"{path} is damaged or was replaced: it is not the file that {CERTIFICATE} beside it is of",
        )
    if found is None and certified is None and not any(DESCRIBED in content for content in files.values()):
        return Verdict(
            state="damaged", why=f"{path} is damaged or foreign: it holds no description by `trainonce export`"
        )
    if found is None and certified is None:
        return Verdict(state="unchecked", why=f"{path} is unchecked: it carries no hash, and {no_certificate}")
    held = [what for what, holds in (("it carries", found), ("its certificate has", certified)) if holds]
    return Verdict(state="whole", why=f"{path} is whole by the hash that {' and that '.join(held)}")


def _carried(path: Path, files: Mapping[str, bytes]) -> bool | None:
    """Whether the hash in the file, or for it in its partner, holds; None where there is none."""
    content = files[path.name]
    names = [path.with_suffix(suffix).name for suffix in PARTNERS.get(path.suffix, ())]
    partner = next((name for name in names if name in files), None)
    other = None if partner is None else files[partner]
    match path.suffix:
        case ".onnx":
            return onnx.SEAL.holds(content)
        case ".pt2" | ".zip":
            return torch_export.is_whole(content)
        case ".xml":
            return openvino.SEAL.holds(content, other or b"")
        case ".param":
            return ncnn.SEAL.holds(content, other or b"")
        case ".bin":
            seal = ncnn.SEAL if partner is not None and partner.endswith(".param") else openvino.SEAL
            return None if other is None else seal.holds(other, content)
        case ".tflite":
            inside = litert.SEAL.holds(content)
            return inside if inside is not None or other is None else sidecar.SEAL.holds(other, content)
        case ".pte":
            return None if other is None else sidecar.SEAL.holds(other, content)
        case ".json":
            return None if other is None else sidecar.SEAL.holds(content, other)
        case _:
            return None


def _certified(path: Path, content: bytes) -> bool | None:
    """Whether the certificate beside a file has its hash; None where it does not name the file."""
    recorded = Certificate.read_file(path.parent / CERTIFICATE).files.get(path.name)
    return None if recorded is None else recorded.sha256 == hashlib.sha256(content).hexdigest()
