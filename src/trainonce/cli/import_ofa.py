"""The command for weights from elsewhere: `import-ofa`."""

from pathlib import Path
from typing import Annotated

import typer

from trainonce.cli import display
from trainonce.cli.known import OFA_NETWORKS, OFA_RESOLUTIONS
from trainonce.cli.options import DataDir, DecodeWorkers, Json, SkipBroken
from trainonce.cli.stopping import importing
from trainonce.cli.tools import numbers
from trainonce.names import command


def import_ofa(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file of weights, as OFA publishes it.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help=f"Which network it is: {', '.join(OFA_NETWORKS)}.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            help="A folder of images of its classes, one folder a class, in the order of the network's classes: "
            "for the published networks ImageNet's images, or some of each class.",
            show_default=False,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The run's directory. Default: runs/NAME.")] = None,
    resolutions: Annotated[
        str, typer.Option(help="Input resolutions to choose from, in pixels; images are brought to the largest.")
    ] = ",".join(map(str, OFA_RESOLUTIONS)),
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Leave a folder's images on disk, or hold them all in memory. Default: as `train` does.",
            show_default=False,
        ),
    ] = None,
    decode_workers: DecodeWorkers = None,
    skip_broken: SkipBroken = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a run of a published once-for-all network (OFA): then evaluate, search and extract it like one trained here.

    The file is read by torch's safe loader, which runs none of its code. Nothing is trained.
    """
    with importing():
        from trainonce.data import load_dataset
        from trainonce.run.directory import RunDirectory
        from trainonce.run.importing import import_ofa

    sizes = numbers(resolutions, "--resolutions", int)
    run = RunDirectory(out or Path("runs") / name)
    images = load_dataset(
        data,
        data_dir=data_dir,
        image_size=max(sizes),
        grey=False,
        stream=stream,
        workers=decode_workers,
        skip_broken=skip_broken,
    )
    net = import_ofa(file, name, images, run, resolutions=sizes)
    low, high = (net.cost_of(arch) for arch in (net.space.smallest(), net.space.largest()))
    if as_json:
        result = {"run": str(run.path), "name": name, "family": net.family, "classes": images.num_classes}
        display.print_json(result | {"macs": [low.macs, high.macs]})
        return
    display.out.print(
        f"{name}: {net.space.count():.3g} subnets of {low.macs / 1e6:.4g} to {high.macs / 1e6:.4g} M MACs, "
        f"{images.num_classes} classes.\nNext: {command('trainonce', 'evaluate', run.path)}"
    )
