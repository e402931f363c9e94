"""Whether files are whole: all of a run, a study, a subnet or an export, or a single one.

Nothing is written and nothing in a file is executed. What each kind of file is held against is in docs/files.md.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainonce.errors import UserError
from trainonce.export.certificate import FILE as CERTIFICATE
from trainonce.export.integrity import PARTNERS, check_file
from trainonce.files import read_arrays, read_bytes
from trainonce.latency import LatencyTable
from trainonce.records import UncheckedWarning, count_file, read_json, read_lines
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.run.exposure import ExposureTable
from trainonce.settings import JsonObject
from trainonce.subnets import read_subnet
from trainonce.subnets.directory import CONFIG, MODEL, WEIGHTS

State = Literal["whole", "unchecked", "foreign", "damaged"]

EXPORTED = (".onnx", ".pt2", ".pte", ".xml", ".bin", ".param", ".tflite", ".mlpackage.zip")
DOCUMENTS = {
    "run.json",
    "baseline.json",
    "fit.json",
    "ship.json",
    "front.json",
    "interference.json",
    "study.json",
    "conclusion.json",
    CONFIG,
    CERTIFICATE,
}
LINES = {"metrics.jsonl", "forgetting.jsonl", "population.jsonl", "search.jsonl", "results.jsonl", "times.jsonl"}
FOLDERS = {"checkpoints", "kept", "latency", "subnets", "runs", "export", "ship"}
FOREIGN = "is nothing that trainonce reads"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What can be said of one file, or of a directory that counts as one."""

    path: Path
    state: State
    """Whole, unchecked (it has no sum to be held against), foreign (trainonce reads no such file) or damaged."""
    why: str
    """A sentence where there is more to say."""


def verify(path: str | Path) -> list[Finding]:
    """What can be said of every file at a path. Raises `UserError` where nothing of trainonce's is there."""
    path = Path(path)
    if not path.exists() and not path.is_symlink():
        raise UserError(f"{path} does not exist")
    if path.is_dir():
        kinds = ("study.json", "run.json", "checkpoints", CONFIG, CERTIFICATE, "MANIFEST")
        if not any((path / name).exists() or (path / name).is_symlink() for name in kinds):
            raise UserError(f"{path} holds neither a run, a study, a subnet nor an export")
        found = dict[Path, Finding]()
        for one in _directory(path):
            known = {other.why for other in found.values() if other.state == "damaged"}
            if one.path not in found or (one.state == "damaged" and one.why not in known):
                found[one.path] = one
        return list(found.values())
    return [_file(path)]


def refuse_damage(findings: Iterable[Finding]) -> None:
    """Raise `UserError` that names the first file that is damaged, where one is."""
    for finding in findings:
        if finding.state == "damaged":
            raise UserError(finding.why)


def _directory(path: Path) -> Iterator[Finding]:
    """Of everything in a directory: what its name says it is, and what should be there."""
    if (path / "MANIFEST").exists():
        yield _judged(path, lambda: checkpoint.load(path))
        return
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        yield Finding(path=path, state="damaged", why=f"{path} cannot be read: {error.strerror}")
        return
    names |= {name for name in LINES if count_file(path / name).name in names}  # one that is lost
    names |= _missing(path, names)
    for name in sorted(names):
        if name in (".lock", "__pycache__") or (name.startswith(".") and name.endswith((".count", ".lock"))):
            continue
        if name.endswith(".partial"):
            yield Finding(path=path / name, state="foreign", why=f"{path / name} was left by a writer that died")
        elif (path / name).is_dir():
            inside = name in FOLDERS or path.name in FOLDERS
            yield from _directory(path / name) if inside else [_foreign(path / name)]
        else:
            yield _file(path / name)
    yield from _together(path)


def _missing(path: Path, names: set[str]) -> set[str]:
    """Files that what is there names and that are not there."""
    if CERTIFICATE in names:
        certified = _values(path / CERTIFICATE).get("files")
        return set(certified) if isinstance(certified, dict) else set()
    if CONFIG in names:
        return {WEIGHTS, MODEL}
    return {"run.json"} if "checkpoints" in names and "study.json" not in names else set()


def _together(path: Path) -> Iterator[Finding]:
    """What of a directory's files does not belong together, though each may be whole by itself."""
    if (path / CONFIG).exists():
        finding = _judged(path / CONFIG, lambda: read_subnet(path))
    elif (path / "run.json").exists() and (path / "checkpoints").exists():
        run = RunDirectory(path)
        finding = _judged(run.config_file, run.checked_config)
        newest = checkpoint.newest_state(run.checkpoints)
        if newest is not None and "exposure" in newest[1] and not run.exposure_file.exists():
            why = f"{run.exposure_file} is missing: it was written before {newest[0].parent}"
            yield Finding(path=run.exposure_file, state="damaged", why=why)
    else:
        return
    if finding.state == "damaged":
        yield finding


def _file(path: Path) -> Finding:
    """What can be said of one file, by its name and by what lies beside it."""
    if path.name in LINES or path.suffix == ".jsonl":
        return _judged(path, lambda: read_lines(path))
    if path.name in DOCUMENTS:
        return _judged(path, lambda: read_json(path))
    if path.name in (WEIGHTS, MODEL) and (path.parent / CONFIG).exists():
        return _judged(path, lambda: _hold(path, _values(path.parent / CONFIG).get("sha256")))
    if (path.parent / "MANIFEST").exists():
        return _judged(path, lambda: checkpoint.load(path.parent))
    programs = PARTNERS[".json"] if path.suffix == ".json" else ()
    if path.name.endswith(EXPORTED) or any(path.with_suffix(suffix).exists() for suffix in programs):
        return _exported(path)
    if path.name == "exposure.npz":
        return _judged(path, lambda: ExposureTable.read(path))
    if path.suffix == ".npz":
        return _judged(path, lambda: read_arrays(path))
    if path.suffix == ".json":
        return _judged(path, lambda: LatencyTable.read(path)) if _is_table(path) else _foreign(path)
    if path.is_symlink() and not path.exists():
        return _judged(path, lambda: read_bytes(path))
    if path.name == "README.md" and (path.parent / CONFIG).exists():
        return Finding(path=path, state="unchecked", why=f"{path} is a model card, which a person may edit")
    return _foreign(path)


def _judged(path: Path, read: Callable[[], object]) -> Finding:
    """Whole where it is read without a word."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            read()
        except UserError as error:
            return Finding(path=path, state="damaged", why=str(error))
    unchecked = [str(one.message) for one in said if issubclass(one.category, UncheckedWarning)]
    return Finding(path=path, state="unchecked" if unchecked else "whole", why="; ".join(unchecked))


def _exported(path: Path) -> Finding:
    try:
        verdict = check_file(path)
    except UserError as error:
        return Finding(path=path, state="damaged", why=str(error))
    return Finding(path=path, state=verdict.state, why="" if verdict.state == "whole" else verdict.why)


def _foreign(path: Path) -> Finding:
    return Finding(path=path, state="foreign", why=f"{path} {FOREIGN}")


def _values(path: Path) -> JsonObject:
    """What a document says, whatever is to be said of it; nothing where it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncheckedWarning)
        try:
            return read_json(path)
        except UserError:
            return {}


def _hold(path: Path, sums: object) -> None:
    """Raise `UserError` where a file's hash is not the one recorded; warn where none is."""
    recorded = sums.get(path.name) if isinstance(sums, dict) else None
    content = read_bytes(path)
    if recorded is None:
        warnings.warn(UncheckedWarning(f"{path} is unchecked: {CONFIG} beside it has no hash of it"), stacklevel=1)
    elif hashlib.sha256(content).hexdigest() != recorded:
        raise UserError(f"{path} is damaged: its checksum is not the recorded one")


def _is_table(path: Path) -> bool:
    return path.parent.name == "latency" or str(_values(path).get("format")).startswith("trainonce-latency-")
