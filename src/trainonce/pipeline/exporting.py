"""A subnet's files for devices, each with a certificate that it is the same network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.export import TARGETS, Target
from trainonce.export.certificate import Certificate, ReferenceLogits
from trainonce.export.exporting import check_export, export_subnet, renew
from trainonce.export.extras import require_extras
from trainonce.export.reference import Reference, read_reference
from trainonce.pipeline.machine import use_threads
from trainonce.pipeline.turns import for_each


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A target's files, written or checked."""

    target: Target
    place: Path
    """Their directory."""
    certificate: Certificate
    not_renewed: str | None = None
    """After a check: why the certificate there was not replaced by this one, where it was not."""

    @property
    def file(self) -> Path:
        """The file to give to a runtime."""
        return self.place / self.target.files[0]


@dataclass(frozen=True, kw_only=True)
class Exports:
    """What became of the targets."""

    done: tuple[Exported, ...]
    failed: dict[str, str] = field(default_factory=dict)
    """Why, of each target that failed beside others."""


def export(
    subnet: str | Path,
    to: str | Sequence[str],
    *,
    run: str | Path | None = None,
    images: int = 64,
    max_loss: float = 1.0,
    check: bool = False,
    out: str | Path | None = None,
    data: DataSet | str | Path | None = None,
    data_dir: str | Path | None = None,
    threads: int | None = None,
    on_reference: Callable[[Reference], None] = lambda _: None,
    on_part: Callable[[str], None] = lambda _sentence: None,
    on_exported: Callable[[Exported], None] = lambda _: None,
    on_failed: Callable[[Target, UserError | RunError], None] = lambda _target, _error: None,
) -> Exports:
    """Export a subnet to one target or several: `trainonce export`, whose options these are.

    The files of each are in a folder of its name in `out` or SUBNET/export. `run` and `data` say where the run and its
    images are now, if they have moved. `on_reference` is called with what is compared with, before the work, `on_part`
    with a sentence before each part of it; the others after each target, or before all work where its extra is missing.
    Raises `UserError` for what cannot be, and `RunError` where the file of an only target is not the same network; of
    several targets, `failed` says of which.
    """
    use_threads(threads)
    targets = [target_named(name) for name in dict.fromkeys([to] if isinstance(to, str) else to)]
    subnet = Path(subnet)
    place = Path(out or subnet / "export")
    done, failed = [], {}
    for target, lacking in for_each(targets, lambda target: None if check else require_extras(target)):
        if lacking is not None:
            failed[target.name] = str(lacking)
            on_failed(target, lacking)
    targets = [target for target in targets if target.name not in failed]
    if not targets:
        return Exports(done=(), failed=failed)
    reference = read_reference(
        subnet,
        run=None if run is None else Path(run),
        data_dir=data_dir,
        moved_to=data,
        images=images,
    )
    on_reference(reference)
    some = len(reference.random_BCHW) + len(reference.supernet_rows)
    also = "" if reference.supernet is None else f", and the supernet on {some:,} of them"
    on_part(f"computing the network on {reference.counted()}{also}")
    expected = ReferenceLogits.of(reference)
    for target, found in for_each(targets, lambda target: _exported(expected, target, place, max_loss, check, on_part)):
        if isinstance(found, Exception):
            failed[target.name] = str(found)
            on_failed(target, found)
        else:
            done.append(found)
            on_exported(found)
    return Exports(done=tuple(done), failed=failed)


def target_named(name: str) -> Target:
    """The target of that name. Raises `UserError` that names the targets for another."""
    if name not in TARGETS:
        each = "; each has a --to of its own" if "," in name else ""
        raise UserError(f"unknown target {name!r}; the targets are {', '.join(TARGETS)}{each}")
    return TARGETS[name]


def _exported(
    expected: ReferenceLogits,
    target: Target,
    out: Path,
    max_loss: float,
    check: bool,
    on_part: Callable[[str], None],
) -> Exported:
    """Write or check one target."""
    if check:
        place, certificate = check_export(expected, target, out, max_loss=max_loss)
    else:
        place, certificate = export_subnet(expected, target, out, max_loss=max_loss, on_part=on_part)
    not_renewed = _renewed(place, certificate) if check else None
    return Exported(target=target, place=place, certificate=certificate, not_renewed=not_renewed)


def _renewed(place: Path, certificate: Certificate) -> str | None:
    """Replace the certificate by that of a check; why not, where the disk refuses."""
    try:
        renew(place, certificate)
    except RunError as error:
        return str(error)
    return None
