"""Write a target's files and certificate, whole or not at all; or hold files that are there against the subnet."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from trainonce.errors import RunError, UserError
from trainonce.export import Target
from trainonce.export.certificate import FILE as CERTIFICATE
from trainonce.export.certificate import Certificate, ReferenceLogits, certify
from trainonce.export.compare import LogitComparison
from trainonce.export.description import FileDescription, Opened, Quantised
from trainonce.export.integrity import judged
from trainonce.export.reference import Reference
from trainonce.files import partial_directory, put_in_place, read_bytes, write_atomic, write_synced
from trainonce.latency import time_ms
from trainonce.records import to_json

WORTH_SAYING_S = 60
"""How long computing a file may take without its being said before."""


def export_subnet(
    expected: ReferenceLogits,
    target: Target,
    out: str | Path,
    *,
    max_loss: float = 1.0,
    on_part: Callable[[str], None] = lambda _sentence: None,
) -> tuple[Path, Certificate]:
    """Export to OUT/TARGET, replacing an earlier export there, and certify what was written.

    `on_part` is told what is done next. Returns the directory and the certificate. Raises `RunError` where the file is
    not the same network, or where int8 loses more than `max_loss` points of top-1: what was written is then in
    OUT/TARGET.failed, and an earlier export stays. Raises `UserError` without the target's extra.
    """
    out = Path(out)
    on_part(f"{target.name}: writing the file")
    written = target.write(expected.reference, max_loss)
    place = out / target.name
    if place.exists() and not (place / CERTIFICATE).is_file():
        raise UserError(f"{place} is there already and is not an export: name another directory")
    failed = out / f"{target.name}.failed"
    try:
        with partial_directory(place) as partial:
            for name, content in written.files.items():
                write_synced(partial / name, content)
            opened = _opened(target, partial, written.files)
            if opened is not None:
                takes = _takes(expected.reference, opened)
                on_part(f"{target.name}: computing the file on {expected.reference.counted()}, and timing it{takes}")
            certificate = _certified(expected, target, opened, written.files, written.details, max_loss)
            write_synced(partial / CERTIFICATE, to_json(certificate.to_json()))
            put_in_place(partial, failed if certificate.passed is False else place)
            if certificate.passed is not False:
                shutil.rmtree(failed, ignore_errors=True)
    except OSError as error:
        raise RunError(f"cannot write {place}: {error.strerror or error}") from error
    if certificate.passed is False:
        raise RunError(f"{target.name}: {certificate.verdict}. The files are in {failed}, not to be used")
    return place, certificate


def check_export(
    expected: ReferenceLogits, target: Target, out: str | Path, *, max_loss: float = 1.0
) -> tuple[Path, Certificate]:
    """Hold the files in OUT/TARGET against the subnet again; nothing is written, see `renew`.

    Files of a target that could unpickle are not opened: their hashes must be those in a certificate of this subnet
    that passed. Raises `RunError` where the files are damaged or not the same network, or where that cannot be told of
    int8 for want of images; `UserError` where they are not there or of another subnet.
    """
    out = Path(out)
    place = out / target.name
    if not (place / CERTIFICATE).is_file():
        raise UserError(f"{place} holds no export: make one first, without --check")
    recorded = Certificate.read_file(place / CERTIFICATE)
    files = {name: read_bytes(place / name) for name in target.files}
    for name in files:
        verdict = judged(place / name, files)
        if verdict.state == "damaged":
            raise RunError(verdict.why)
    where = str(place / target.files[0])
    if target.describe is None:
        opened = target.open(files, torch.get_num_threads(), where)
        described = opened.description
    else:
        opened, described = None, target.describe(files, where)
        _refuse_uncertified(recorded, expected.reference, place)
    _refuse_another(described, expected.reference, target, place)
    certificate = _certified(expected, target, opened, files, recorded.details, max_loss)
    if certificate.passed is False:
        raise RunError(f"{target.name}: {certificate.verdict}. The files are in {place}")
    return place, certificate


def renew(place: str | Path, certificate: Certificate) -> None:
    """Replace the certificate of files that passed a check. Raises `RunError` where the disk refuses.

    One of files that were not opened has less to say than theirs, which stays.
    """
    place = Path(place)
    if not isinstance(certificate.extracted_and_exported, LogitComparison):
        return
    try:
        write_atomic(place / CERTIFICATE, to_json(certificate.to_json()))
    except OSError as error:
        raise RunError(f"cannot write {place / CERTIFICATE}: {error.strerror}") from error


def _takes(reference: Reference, opened: Opened) -> str:
    """About how long the file takes for all images, by one of them, where that is worth saying."""
    (ms,) = time_ms([lambda: opened.run(reference.random_BCHW[:1])], rounds=1, repeats=1, warm_up=0)
    images = len(reference.random_BCHW) + (0 if reference.data is None else len(reference.data.test))
    seconds = 1e-3 * ms * images
    return f": about {seconds / 60:.0f} min" if seconds > WORTH_SAYING_S else ""


def _refuse_another(found: FileDescription, reference: Reference, target: Target, place: Path) -> None:
    here, there = reference.file.of_subnet(), found.of_subnet()
    others = [name for name in here if here[name] != there[name]]
    if others:
        raise UserError(f"{place} is of another subnet than {reference.path}: it differs in {', '.join(others)}")
    if found.precision != target.precision:
        raise UserError(f"{place} computes in {found.precision}: that is not a file of --to {target.name}")


def _refuse_uncertified(recorded: Certificate, reference: Reference, place: Path) -> None:
    if recorded.weights_sha256 != reference.file.weights_sha256:
        raise UserError(f"{place} is of another subnet than {reference.path}: its certificate names other weights")
    if recorded.description not in (None, reference.file.of_subnet()):  # early ones have none
        raise UserError(f"{place} is of another subnet than {reference.path}: its certificate describes another")
    if recorded.passed is False:
        raise UserError(f"{place} did not pass when it was made: {recorded.verdict}")


def _opened(target: Target, folder: Path, made: Mapping[str, bytes]) -> Opened | None:
    """Open what is on disk, which must be what was made: that is also why opening it cannot run foreign code.

    None where no runtime computes it here.
    """
    files = {name: (folder / name).read_bytes() for name in made}
    if files != made:
        raise RunError(f"the disk gives back other bytes than were written to {folder}")
    if not target.runs_here:
        return None
    return target.open(files, torch.get_num_threads(), str(folder / target.files[0]))


def _certified(
    expected: ReferenceLogits,
    target: Target,
    opened: Opened | None,
    files: Mapping[str, bytes],
    details: Quantised,
    max_loss: float,
) -> Certificate:
    return certify(
        expected,
        opened,
        target=target.name,
        precision=target.precision,
        files=files,
        details=details,
        max_loss=max_loss,
        runs_here=target.runs_here,
        not_opened=target.not_opened,
    )
