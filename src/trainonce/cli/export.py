"""`trainonce export`: files that run on a device, each with a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainonce.cli import display, known
from trainonce.cli.options import DataDir, Json, MovedData, Threads
from trainonce.cli.stopping import importing, stoppable
from trainonce.errors import RunError
from trainonce.names import plain

if TYPE_CHECKING:
    from trainonce.export.reference import Reference
    from trainonce.pipeline.exporting import Exported


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
    max_loss: Annotated[float, typer.Option(min=0, help="Points of top-1 that float16 and int8 may lose.")] = 1.0,
    check: Annotated[
        bool, typer.Option("--check", help="Write no files: compare those that are there with the subnet again.")
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

    The same images go through the extracted network and the file, some of them through the supernet. A difference is
    exit code 1 and names the first layer that differs.
    """
    with importing():
        from trainonce.pipeline import export

    done: list[Exported] = []

    def on_exported(one: Exported) -> None:
        done.append(one)
        _say(one, as_json=as_json)

    with stoppable(lambda: _kept(done, to, check=check)):
        found = export(
            subnet,
            to,
            run=run,
            images=images,
            max_loss=max_loss,
            check=check,
            out=out,
            data=data_path,
            data_dir=data_dir,
            threads=threads,
            on_reference=_say_left_out,
            on_part=lambda sentence: display.err.print(f"{sentence} …"),
            on_exported=on_exported,
            on_failed=lambda target, error: display.err.print(f"{target.name} failed: {error}."),
        )
    if as_json:
        exports = [{"path": str(one.file), "certificate": one.certificate.to_json()} for one in found.done]
        display.print_json({"exports": exports, "failed": found.failed})
    if found.failed:
        raise RunError(f"{len(found.failed)} of {len(found.done) + len(found.failed)} targets failed")


def _kept(done: Sequence[Exported], to: Sequence[str], *, check: bool) -> str:
    made = {one.target.name for one in done}
    left = " ".join(f"--to {name}" for name in dict.fromkeys(to) if name not in made)
    if check:
        return f"the files are as they were; not checked: {left}"
    written = ", ".join(str(one.file) for one in done)
    return f"{f'{written} and the certificate are' if written else 'nothing is'} written; go on with {left}"


def _say_left_out(reference: Reference) -> None:
    if reference.no_supernet:
        display.err.print(f"The supernet is not compared: {reference.no_supernet}.")
    if reference.no_data:
        display.err.print(f"The test split is not compared: {reference.no_data}.")


def _say(one: Exported, *, as_json: bool) -> None:
    if not as_json:
        _say_certificate(one)
    if one.not_renewed is not None:
        display.err.print(f"The certificate was not renewed: {one.not_renewed}.")


def _say_certificate(one: Exported) -> None:
    from trainonce.evaluation.evaluator import wilson
    from trainonce.export.certificate import FILE as CERTIFICATE

    certificate = one.certificate
    size = sum(file.bytes for file in certificate.files.values())
    lines = [f"{one.target.name}: {certificate.verdict}."]
    scores = [
        "{} {:.2f}% ({:.1f} to {:.1f})".format(name, value, *wilson(value, certificate.images.test))
        for name, value in certificate.top1.items()
        if isinstance(value, float)
    ]
    if scores:
        lines.append(f"Top-1 on {certificate.images.test} test images, with 95% intervals: {', '.join(scores)}.")
    exported, extracted = certificate.latency_ms.exported, certificate.latency_ms.extracted
    if exported is not None:
        here = "" if extracted is None else f", {plain(extracted, 3)} with torch here"
        lines.append(f"{size / 1e6:.2f} MB; one image takes {plain(exported, 3)} ms{here}.")
    if certificate.latency_ms.quiet is False:
        lines.append(f"{display.not_quiet(certificate.latency_ms.drift)}, so these times are not to be quoted.")
    kept = certificate.details.kept_in_float32
    if kept:
        lines.append(f"Left in float32, because int8 there costs most: {', '.join(kept)}.")
    arena, flash = certificate.details.arena_bytes, certificate.details.flash_bytes
    if arena is not None and flash is not None:
        lines.append(f"Needs {arena:,} bytes of memory and {flash:,} of flash, beside the runtime itself.")
    lines.append(f"{one.file}; certificate: {one.place / CERTIFICATE}")
    display.out.print("\n".join(lines))
