"""`trainonce demo`: a page that runs subnets in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from trainonce.cli import display
from trainonce.cli.options import Json
from trainonce.cli.stopping import importing


def demo(
    subnets: Annotated[
        list[Path],
        typer.Argument(
            metavar="SUBNET|FILE.onnx...",
            help="Subnets' directories, whose ONNX files are taken and made where there are none; or ONNX files.",
            show_default=False,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The page. Default: demo.html beside the first subnet.")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="npm|FILE|FOLDER",
            help="Where onnxruntime-web is, needed once: npm fetches it (33 MB); or npm's tarball, or a folder of it.",
            show_default=False,
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="What the page is called.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML file that runs subnets in a browser: choose, drop or draw an image, or use the camera.

    It opens from the disk and needs no connection. A slider goes from one network to the next.
    """
    with importing():
        from trainonce.pipeline import demo

    done = demo(
        subnets,
        out=out,
        runtime=runtime,
        title=title,
        on_export=lambda place: display.err.print(f"{place}: exporting to ONNX, and certifying that"),
    )
    if as_json:
        models = [model.to_json() for model in done.models]
        display.print_json({"path": str(done.path), "bytes": done.bytes, "models": models})
        return
    for model in done.models:
        tested = "not tested" if model.top1 is None else f"{model.top1:.2f}% on {model.test_images} test images"
        display.out.print(f"{model.name}: {model.macs / 1e6:.3f} M MACs, {model.bytes / 1e3:,.0f} KB, {tested}")
    display.out.print(f"{done.path}, {done.bytes / 1e6:.1f} MB: open it in a browser; it needs no connection.")
