"""`trainonce export`: files that run on a device, each with a certificate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainonce.cli import display, known
from trainonce.cli.options import DataDir, Json, MovedData, Threads
from trainonce.cli.stopping import importing, stoppable
from trainonce.cli.tools import for_each
from trainonce.errors import RunError, UserError

if TYPE_CHECKING:
    from trainonce.export import Target
    from trainonce.export.certificate import Baseline, Certificate
    from trainonce.export.reference import Reference


def export(
    subnet: Annotated[
        Path, typer.Argument(metavar="SUBNET", help="A directory that `trainonce extract` wrote.", show_default=False)
    ],
    to: Annotated[
        list[str],
        typer.Option(
            metavar="|".join(known.TARGETS), help="What to write; may be given several times.", show_default=False
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Option(help="The run to compare with. Default: the one the subnet was taken from, if it is at hand."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Random images to compare, beside the whole test split of the run.")
    ] = 64,
    max_loss: Annotated[float, typer.Option(min=0, help="Points of top-1 that int8 may lose.")] = 1.0,
    check: Annotated[
        bool, typer.Option("--check", help="Write no files: hold those there against the subnet again.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory to write; a folder for each target goes in. Default: SUBNET/export.")
    ] = None,
    data_path: MovedData = None,
    data_dir: DataDir = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Export a subnet to a file that runs on a device, with a certificate that it is the same network.

    The same images go through the supernet, the extracted network and the file. A difference is exit code 1 and names
    the first layer that differs.
    """
    with importing():
        from trainonce.export.certificate import Baseline
        from trainonce.export.reference import read_reference
        from trainonce.pipeline.machine import use_threads

    use_threads(threads)
    targets = [_target(name) for name in dict.fromkeys(to)]
    place = out or subnet / "export"
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with stoppable(lambda: _kept(done, targets, check=check)):
        reference = read_reference(subnet, run=run, data_dir=data_dir, moved_to=data_path, images=images)
        _say_left_out(reference)
        baseline = Baseline.of(reference)

        def one(target: Target) -> dict[str, Any]:
            return _exported(baseline, target, place, max_loss, check=check, as_json=as_json)

        for target, found in for_each(targets, one):
            if isinstance(found, Exception):
                failed[target.name] = str(found)
                display.err.print(f"{target.name} failed: {found}.")
            else:
                done[target.name] = found
    if as_json:
        display.print_json({"exports": list(done.values()), "failed": failed})
    if failed:
        raise RunError(f"{len(failed)} of {len(targets)} targets failed")


def _kept(done: Mapping[str, dict[str, Any]], targets: Sequence[Target], *, check: bool) -> str:
    left = " ".join(f"--to {target.name}" for target in targets if target.name not in done)
    if check:
        return f"the files are as they were; not checked: {left}"
    written = ", ".join(str(entry["path"]) for entry in done.values())
    return f"{f'{written} and the certificate are' if written else 'nothing is'} written; go on with {left}"


def _exported(
    baseline: Baseline, target: Target, out: Path, max_loss: float, *, check: bool, as_json: bool
) -> dict[str, Any]:
    """Write or check one target, say how that went, and give what --json says of it."""
    from trainonce.export.exporting import check_export, export_subnet

    work = check_export if check else export_subnet
    place, certificate = work(baseline, target, out, max_loss=max_loss)
    if not as_json:
        _say(target, place, certificate)
    if check:
        _renew(place, certificate)
    return {"path": str(place / target.files[0]), "certificate": certificate.to_json()}


def _renew(place: Path, certificate: Certificate) -> None:
    from trainonce.export.exporting import renew

    try:
        renew(place, certificate)
    except RunError as error:
        display.err.print(f"The certificate was not renewed: {error}.")


def _target(name: str) -> Target:
    from trainonce.export import TARGETS

    if name not in TARGETS:
        raise UserError(f"unknown target {name!r}; the targets are {', '.join(TARGETS)}")
    return TARGETS[name]


def _say_left_out(reference: Reference) -> None:
    if reference.no_supernet:
        display.err.print(f"The supernet is not compared: {reference.no_supernet}.")
    if reference.no_data:
        display.err.print(f"The test split is not compared: {reference.no_data}.")


def _say(target: Target, place: Path, certificate: Certificate) -> None:
    from trainonce.export.certificate import FILE as CERTIFICATE

    size = sum(file["bytes"] for file in certificate.files.values())
    lines = [f"{target.name}: {certificate.verdict}."]
    scores = [f"{name} {value:.2f}%" for name, value in certificate.top1.items() if isinstance(value, float)]
    if scores:
        lines.append(f"Top-1 on {certificate.images['test']} test images: {', '.join(scores)}.")
    if certificate.latency_ms:
        exported, extracted = certificate.latency_ms["exported"], certificate.latency_ms["extracted"]
        lines.append(f"{size / 1e6:.2f} MB; one image takes {exported:.3g} ms, {extracted:.3g} with torch here.")
    kept = certificate.details.get("kept_in_float32")
    if kept:
        lines.append(f"Left in float32, because int8 there costs most: {', '.join(kept)}.")
    lines.append(f"{place / target.files[0]}; certificate: {place / CERTIFICATE}")
    display.out.print("\n".join(lines))
