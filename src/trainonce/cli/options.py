"""The options and arguments that several commands have, each said once."""

from pathlib import Path
from typing import Annotated

import typer

from trainonce.cli.known import DEFAULT_FAMILY, FAMILIES, TARGETS

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run's directory.", show_default=False)]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Where published data sets are, or go to. Default: $TRAINONCE_DATA, else ./data."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random here.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how long it takes; write nothing.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1; auto takes a GPU if there is one.")]
MovedData = Annotated[str | None, typer.Option("--data", help="Where the images are now, if they have moved.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: one a core.")]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="A recipe's name (see `trainonce list`) or a .toml file. Default: transfer for weights that were trained "
        "before; else quick, but rss where `trainonce train` is given a data set by name.",
        show_default=False,
    ),
]
Family = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(FAMILIES)}, or your own as package.module:Class. Default: {DEFAULT_FAMILY}.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Make a network of your own elastic: timm:NAME, torchvision:NAME or your own package.module:function.",
        show_default=False,
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE|RUN",
        help="Begin with trained weights: those of --model (.safetensors, or a state dict that torch.save wrote), or, "
        "without it, a run's supernet.",
        show_default=False,
    ),
]
Stages = Annotated[
    bool, typer.Option("--stages", help="Of --model, make the channels elastic too that residual sums share.")
]
Resolutions = Annotated[
    str | None,
    typer.Option(
        help="Sizes of images to choose from, such as 24,28,32 (pixels). Default: one size, in the geometry light also "
        "half and three quarters of it; of --from RUN that run's, where the images have its size; of --model also the "
        "multiples of 32 from half of it on, where the network can take them."
    ),
]
Kernels = Annotated[
    bool,
    typer.Option("--kernels", help="Of --model, let depthwise kernels of 5 x 5 and more be smaller too."),
]
Rigid = Annotated[
    list[str] | None,
    typer.Option(
        help="Of --model, choices that are not elastic, as a pattern: 'layer1.*'. May be given several times.",
        show_default=False,
    ),
]
Geometry = Annotated[
    str | None,
    typer.Option(
        help="A geometry of the family (see `trainonce list`). Default: what suits the size of the images.",
        show_default=False,
    ),
]
ClassBalance = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="How far rare classes make up for their number in the loss: 0 not at all, 1 wholly. "
        "Default: the recipe's.",
        show_default=False,
    ),
]
Width = Annotated[float | None, typer.Option(min=0.05, max=4, help="Width multiplier on channels.")]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=4,
        help="Resize images to this many pixels a side. Default: 64 for a folder, or what --model was trained with.",
    ),
]
Grey = Annotated[bool, typer.Option("--grey", help="Turn the images grey.")]
TrainImages = Annotated[
    int | None,
    typer.Option(
        "--train-images",
        min=1,
        help="Train on this many images, the same share of every class; the other splits stay whole. Default: all.",
        show_default=False,
    ),
]
SplitSeed = Annotated[
    int,
    typer.Option(
        "--split-seed",
        min=0,
        max=2**63 - 1,
        help="Seed of which images are held out. Train again with others to see how much the figures depend on it.",
    ),
]
DecodeWorkers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that decode streamed images. Default: one for each core but one; 0: none."),
]
SkipBroken = Annotated[
    bool,
    typer.Option(
        "--skip-broken",
        help="Look at all files of a folder first and leave out those that are broken; the run records which.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that share the work and --threads. Default: one a thread where there is more than half a "
        "minute of work on the CPU, else 1; on Ray, as many as there is room for.",
    ),
]
Cluster = Annotated[
    str,
    typer.Option(
        metavar="local|ray|ADDRESS",
        help="Where workers are: processes on this machine; Ray on this machine; or the Ray cluster at an address.",
    ),
]
MaxMacs = Annotated[str | None, typer.Option(help="Most MACs: 10 or 10M is ten million.", show_default=False)]
MaxParams = Annotated[str | None, typer.Option(help="Most parameters: 3 or 3M is three million.", show_default=False)]
MaxLatency = Annotated[
    str | None, typer.Option(help="Most time for one image, as a latency table says, such as 5ms.", show_default=False)
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        "--max-ram",
        help="Most memory of activations at once, such as 256KB, in the numbers of --target.",
        show_default=False,
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        "--max-size",
        "--max-flash",
        help="Largest file of the weights, such as 512KB, in the numbers of --target.",
        show_default=False,
    ),
]
CountedFor = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="|".join(TARGETS),
        help="What will be exported to: memory and size are counted in its numbers. Default: float32.",
        show_default=False,
    ),
]
Latency = Annotated[
    str | None,
    typer.Option(
        metavar="TABLE",
        help="A table that `latency build` made: a file, or a name in RUN/latency. Default: the only one there.",
        show_default=False,
    ),
]
Buckets = Annotated[str, typer.Option(help="Bucket centres in million MACs, or paper. Default: six, evenly.")]
BucketHalfWidth = Annotated[
    float | None,
    typer.Option(
        help="How far a bucket reaches to either side, in million MACs. Default: 0.5; where --buckets is not given, "
        "a twentieth of the range, and at most a twelfth."
    ),
]
SubnetArgument = Annotated[
    Path, typer.Argument(metavar="SUBNET", help="A subnet's directory, as `extract` writes it.", show_default=False)
]
