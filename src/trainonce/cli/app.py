"""The command line: parse, call, print. `main` turns refusals into a sentence and an exit code.

Exit codes: 0 done; 1 the work could not go on; 2 what was asked for cannot be; 130 and 143 stopped by
Ctrl-C or SIGTERM with everything saved.
"""

import contextlib
import io
import os
import signal
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.text import Text

from trainonce.cli import display
from trainonce.cli import export as cli_export
from trainonce.cli import fit as cli_fit
from trainonce.cli import lab as cli_lab
from trainonce.cli import latency as cli_latency
from trainonce.cli import ofa as cli_ofa
from trainonce.cli import report as cli_report
from trainonce.cli import search as cli_search
from trainonce.cli import study as cli_study
from trainonce.cli import subnet as cli_subnet
from trainonce.cli import verify as cli_verify
from trainonce.cli.options import (
    Cluster,
    DataDir,
    DecodeWorkers,
    Device,
    DryRun,
    Grey,
    ImageSize,
    Json,
    MovedData,
    RecipeName,
    RunArgument,
    Seed,
    SkipBroken,
    Threads,
    TrainImages,
    Width,
    Workers,
)
from trainonce.cli.tools import (
    bucket_centres,
    cluster_chosen,
    device_named,
    estimated_seconds,
    given,
    numbers,
    planned_workers,
    prober,
    refuse_beside,
    scaled,
    stop_on_signal,
    tensorboard_writer,
    use_threads,
)
from trainonce.cost.memory import is_out_of_memory
from trainonce.data import DATASET_NAMES, load_dataset
from trainonce.data.baseline import baseline
from trainonce.errors import RunError, Stopped, UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, finite
from trainonce.evaluation.per_class import score_by_class
from trainonce.evaluation.population import (
    MOST_PER_BUCKET,
    best_within,
    draw_population,
    evaluate_population,
    make_buckets,
    newest_lines,
    recorded,
    summarise,
)
from trainonce.files import private_folder
from trainonce.lab.measures.forgetting import MOST_PROBES
from trainonce.models import GEOMETRIES, MobileNetV3, MobileNetV3Settings
from trainonce.names import command
from trainonce.parallel.distributed import is_first_process, process_group
from trainonce.parallel.fan_out import LOCAL, ranks_at_work
from trainonce.recipes import RECIPES, load_recipe
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.search.measures import NAMES, table_at
from trainonce.subnets import check_place, verify_subnet, write_subnet
from trainonce.subnets.taken import describe_taken
from trainonce.training.loop import Progress, TrainSettings, refuse_large_step, train_supernet
from trainonce.version import __version__


class _Commands(typer.core.TyperGroup):
    """The commands; Ctrl-C, at which Typer would end without a word, is a sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped("stopped", 128 + signal.SIGINT) from None


app = typer.Typer(
    cls=_Commands,
    help="Train one once-for-all supernet; take out a network for every device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

BESIDE_RESUME = {
    "resume",
    "data",
    "data_dir",
    "device",
    "threads",
    "checkpoint_every",
    "probes",
    "sync_bn",
    "precision",
    "cuda_graphs",
    "keep_at",
    "tensorboard",
    "as_json",
    "stream",
    "decode_workers",
}


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help=f"A data set ({', '.join(DATASET_NAMES)}), or the path of an image folder (one class a folder) "
            "or .npz file.",
            show_default=False,
        ),
    ] = None,
    recipe: RecipeName = "rss",
    out: Annotated[Path | None, typer.Option(help="The run's directory. Default: runs/DATA-RECIPE-SEED.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this directory. Needs nothing else; name DATA if it moved.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0, help="Scale the recipe to this many epochs; proportions stay.")
    ] = None,
    passes: Annotated[
        float | None,
        typer.Option(min=0, help="Scale it to this many subnet passes over the images: what it costs."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images in a step; learning rates scale with it.")
    ] = None,
    geometry: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(GEOMETRIES)}. Default: tiny up to 16 pixels, else paper."),
    ] = None,
    image_size: ImageSize = None,
    resolutions: Annotated[
        str | None, typer.Option(help="Elastic input resolution, such as 24,28,32 (pixels).")
    ] = None,
    width: Width = None,
    grey: Grey = False,
    train_images: TrainImages = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Leave a folder's images on disk and decode them as they are needed, or hold them all in memory. "
            "Default: stream what would take more than a quarter of the memory.",
            show_default=False,
        ),
    ] = None,
    decode_workers: DecodeWorkers = None,
    skip_broken: SkipBroken = False,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    checkpoint_every: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints.")] = 60.0,
    probes: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_PROBES,
            help="Subnets, from the smallest to the largest, that are scored now and then while training, in at most "
            "a hundredth of its arithmetic: they show what is forgotten. Default: 4; resumed, those looked at before, "
            "if any were.",
            show_default=False,
        ),
    ] = None,
    sync_bn: Annotated[
        bool | None,
        typer.Option(
            "--sync-bn/--no-sync-bn",
            help="With several processes, normalise by the images of all. Default: no; resumed, as before.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="float32|bfloat16",
            help="The numbers that networks compute in; weights are float32. Default: float32; resumed, as before.",
            show_default=False,
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool,
        typer.Option("--cuda-graphs/--no-cuda-graphs", help="On a GPU, replay steps, or their blocks, as CUDA graphs."),
    ] = True,
    keep_at: Annotated[
        str | None,
        typer.Option(
            help="Shares of the training after which the weights are kept for good, such as 0.1,0.5: `measure` looks "
            "at them too. Default: none; resumed, as before.",
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write RUN/tensorboard.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a supernet.

    Stops cleanly on Ctrl-C and SIGTERM; `--resume RUN` goes on where it stopped. Several processes or hosts:
    `torchrun --nproc-per-node 2 -m trainonce train …` trains one supernet together.
    """
    use_threads(threads)
    ranks = context.with_resource(process_group(device_named(device)))
    context.with_resource(display.silent(not ranks.first))
    kept = () if keep_at is None else numbers(keep_at, "--keep-at", float)
    with ranks.together():
        if resume is not None:
            refuse_beside(context, "--resume", BESIDE_RESUME)
            run = RunDirectory(resume)
            config = run.config()
            images = run.load_data(data_dir, moved_to=data, stream=stream, workers=decode_workers)
            net, chosen, seed = run.build_supernet(), config.recipe, config.seed
            sync_bn = config.sync_batch_norm if sync_bn is None else sync_bn
            precision = precision or config.precision
            kept = config.keep_at if keep_at is None else kept
            newest = checkpoint.newest(run.checkpoints)
            if newest is None and run.metrics():
                raise UserError(
                    f"{resume} was trained before but its checkpoints are gone: there is nothing to go on from"
                )
            display.err.print(f"Resuming {resume} at {newest.name if newest else 'its beginning'}")
        else:
            if data is None:
                raise UserError("name a data set, a folder of images or an .npz file, or give --resume RUN")
            chosen = scaled(load_recipe(recipe), epochs, passes, batch_size)
            images = load_dataset(
                data,
                data_dir=data_dir,
                image_size=image_size,
                grey=grey,
                train_images=train_images,
                stream=stream,
                workers=decode_workers,
                skip_broken=skip_broken,
            )
            fields: dict[str, Any] = {} if width is None else {"width_mult": width}
            if resolutions is not None:
                fields["resolutions"] = numbers(resolutions, "--resolutions", int)
            net = MobileNetV3(
                MobileNetV3Settings.for_images(
                    image_size=images.image_size,
                    in_channels=images.channels,
                    num_classes=images.num_classes,
                    geometry=geometry,
                    **fields,
                ),
                seed=seed,
            )
            run = RunDirectory(out or Path("runs") / f"{images.name}-{chosen.name}-{seed}")
        refuse_large_step(net, chosen, images, ranks, ranks.device)
    display.announce(images, net, chosen, run)
    display.say_slow(ranks.device)
    settings = TrainSettings.parse(
        {
            "device": ranks.device,
            "checkpoint_every_s": checkpoint_every,
            "sync_batch_norm": bool(sync_bn),
            "precision": precision or "float32",
            "cuda_graphs": cuda_graphs,
            "keep_at": kept,
        },
        where="the command line",
    )
    plain = baseline(images) if ranks.first and not (resume and run.baseline_file.exists()) else None
    if plain is not None:
        display.err.print(f"For comparison: {plain}")
    if dry_run:
        seconds = estimated_seconds(
            net, images, chosen, settings.device, processes=ranks.size, precision=settings.precision
        )
        display.say_duration(seconds, as_json and ranks.first)
        return
    began = time.monotonic()
    board_wanted = tensorboard and ranks.first
    look = prober(net.to(ranks.device), chosen, images, run, count=probes, seed=seed) if ranks.first else None
    with stop_on_signal() as stop, display.progress() as show, tensorboard_writer(board_wanted, run) as board:

        def on_progress(at: Progress) -> None:
            if plain is not None and not run.baseline_file.exists():
                run.write_baseline(plain)
            board(at)
            show(at.step, at.steps, display.training_line(at))

        finished = train_supernet(
            net,
            chosen,
            images,
            run,
            seed=seed,
            resume=resume is not None,
            settings=settings,
            on_progress=on_progress,
            on_epoch=look,
            should_stop=lambda: stop.number is not None,
            ranks=ranks,
        )
    if not finished:
        display.err.print(f"Stopped and saved. Go on with: {command('trainonce', 'train', '--resume', run.path)}")
        raise typer.Exit(128 + (stop.number or signal.SIGTERM))  # another process may have been the one to be told
    if not ranks.first:
        return
    metrics = run.metrics()[-1]
    result = {"run": str(run.path), "seconds": round(time.monotonic() - began, 1), **metrics}
    if as_json:
        display.print_json(result)
        return
    display.out.print(
        f"Trained in {display.duration(result['seconds'])}: training loss {metrics['loss']:.3f}, "
        f"top-1 {metrics['top1']:.1f}% on augmented images.\nNext: {command('trainonce', 'evaluate', run.path)}"
    )


@app.command()
def evaluate(
    context: typer.Context,
    run_path: RunArgument,
    split: Annotated[
        Literal["validate", "test"],
        typer.Option(help="validate to choose by; test to report, once."),
    ] = "validate",
    buckets: Annotated[
        str,
        typer.Option(help="Centres in million MACs, such as 4,6,8; or paper: 4,6,8,10,12,14. Default: six, evenly."),
    ] = "",
    bucket_half_width: cli_report.BucketHalfWidth = None,
    per_bucket: Annotated[
        int, typer.Option(min=1, max=MOST_PER_BUCKET, help="Distinct random subnets in each bucket.")
    ] = 100,
    over: Annotated[
        Literal["choices", "subnets"],
        typer.Option(help="What is uniform within a bucket: the values of choices, or distinct subnets."),
    ] = "choices",
    calibration_images: Annotated[
        int, typer.Option(min=2, help="Augmented images for recalibrating batch norms.")
    ] = 2000,
    data_path: MovedData = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = None,
    decode_workers: DecodeWorkers = None,
    cluster: Cluster = LOCAL,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score random subnets in buckets of MACs, and print the population.

    What is recorded already is not done again. Under torchrun, the ranks share the work and the first one records.
    """
    if not context.with_resource(ranks_at_work()):
        return
    use_threads(threads)
    cluster, workers = cluster_chosen(cluster, workers)
    run = RunDirectory(run_path)
    net, step = run.load_supernet()
    chosen = make_buckets(net.cost, bucket_centres(buckets), bucket_half_width)
    population = draw_population(net.cost, chosen, per_bucket, seed=seed, over=over)
    display.err.print(f"{len(population)} subnets in {len(chosen)} buckets, {split} split, weights of step {step}")
    data = run.load_data(data_dir, moved_to=data_path, workers=decode_workers)
    display.say_streamed(data)
    settled = torch.device(device_named(device))
    display.say_slow(settled.type)
    net, data = net.to(settled), data.to(settled)
    settings = EvaluateSettings(calibration_images=calibration_images, seed=seed)
    evaluator = Evaluator(data, split, settings)
    known = recorded(run, evaluator, step)
    before = sum(str(arch) in known for _, arch in population)
    if dry_run or (workers is None and cluster == LOCAL):
        middle = population[len(population) // 2][1]
        workers, seconds = planned_workers(
            lambda: evaluator(net, middle), len(population) - before, workers, cluster=cluster, device=settled.type
        )
        if dry_run:
            display.say_duration(seconds, as_json, workers)
            return
    began = time.monotonic()
    with run.lock(), stop_on_signal() as stop, display.progress() as show:

        def on_progress(done: int, line: dict[str, Any]) -> None:
            left = (time.monotonic() - began) / (done - before) * (len(population) - done)
            show(done, len(population), f"{display.subnet_line(line)}; {display.duration(left)} left")

        lines = evaluate_population(
            net,
            step,
            evaluator,
            run,
            population,
            workers=workers,
            cluster=cluster,
            on_progress=on_progress,
            should_stop=lambda: stop.number is not None,
        )
    if stop.number is not None:
        display.err.print(f"Stopped; {len(lines)} of {len(population)} subnets are recorded. Run it again to go on.")
        raise typer.Exit(128 + stop.number)
    summaries = summarise(lines, chosen)
    if as_json:
        display.print_json({"run": str(run.path), "split": split, "buckets": [asdict(s) for s in summaries]})
        return
    display.out.print(f"Top-1 in percent on {lines[0]['images']} {split} images of {data.name}")
    display.out.print(display.population_table(summaries))
    display.say_baseline(run.baseline() if split == "validate" else None, max(s.maximum for s in summaries))
    middle_macs = f"{chosen[len(chosen) // 2].centre / 1e6:.2g}"
    display.err.print(f"Next: {command('trainonce', 'extract', run.path, '--max-macs', middle_macs)}")


@app.command()
def extract(
    context: typer.Context,
    run_path: RunArgument,
    arch: Annotated[
        str | None,
        typer.Argument(
            help="An architecture, as `evaluate` and `search` record it; or largest, or smallest. Without it, the "
            "best under the budget of all that they scored.",
            show_default=False,
        ),
    ] = None,
    max_macs: cli_search.MaxMacs = None,
    max_params: cli_search.MaxParams = None,
    max_latency: cli_search.MaxLatency = None,
    max_memory: cli_search.MaxMemory = None,
    max_size: cli_search.MaxSize = None,
    latency: cli_search.Latency = None,
    recalibrate: Annotated[
        bool,
        typer.Option(help="Give the subnet batch-norm statistics of its own. Without, it is the supernet's cut."),
    ] = True,
    test: Annotated[bool, typer.Option("--test", help="Also score it on the test split and record that.")] = False,
    out: Annotated[Path | None, typer.Option(help="Directory to write. Default: RUN/subnets/ID.")] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="The licence that its model card names, such as apache-2.0.")
    ] = None,
    data_path: MovedData = None,
    data_dir: DataDir = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of the calibration. Default: as the subnet was scored.")
    ] = 0,
    device: Device = "auto",
    threads: Threads = None,
    decode_workers: DecodeWorkers = None,
    as_json: Json = False,
) -> None:
    """Take one subnet out: a directory that loads with torch and safetensors alone."""
    use_threads(threads)
    run = RunDirectory(run_path)
    net, step = run.load_supernet()
    data = run.load_data(data_dir, moved_to=data_path, workers=decode_workers).to(device_named(device))
    display.say_streamed(data)
    net, settings = net.to(device_named(device)), EvaluateSettings(seed=seed)
    if arch is not None:
        budgets = {f"max_{name}" for name in NAMES} | {"latency"}
        refuse_budget = {p.name for p in context.command.params if p.name} - budgets
        refuse_beside(context, "an architecture", refuse_budget)
    else:
        texts = dict(zip(NAMES, (max_macs, max_params, max_latency, max_memory, max_size), strict=True))
        limits = cli_search.limits_of(net, texts, table_at(run, latency))
        recorded_lines = [*run.population(), *run.searched()]
        lines = newest_lines((line for line in recorded_lines if line["step"] == step), "validate")
        best = best_within(
            lines,
            fits=lambda line: all(limit.violation(net.space.parse(line["arch"])) <= 0 for limit in limits),
        )
        arch = str(best["arch"])
        if not given(context, "seed"):
            settings = cli_search.calibration_of(run, best)
    chosen = net.space.parse(arch)
    path = out or run.subnets / chosen.id
    check_place(path)
    evaluator = Evaluator(data, "validate", settings)
    network = evaluator.recalibrated(net, chosen) if recalibrate else net.extract(chosen)
    scores = {"validate": finite(evaluator.score(network), "validate")} if test else {}
    last = "test" if test else "validate"
    scores[last], classes = score_by_class(network, data.test if test else data.validate, data, last)
    calibration = evaluator.settings if recalibrate else None
    description = describe_taken(net, chosen, data, run, step, calibration=calibration, scores=scores)
    description["per_class"] = {"split": last, **classes.model_dump(mode="json")}
    if license_name:
        description["license"] = license_name
    write_subnet(path, network, description)
    verify_subnet(path, network)
    if as_json:
        display.print_json({"path": str(path), **description})
        return
    measured = "; ".join(f"{found} on {name}" for name, found in scores.items())
    cost = net.cost_of(chosen)
    display.out.print(f"{chosen}\n{measured}; {cost.macs / 1e6:.3f} M MACs, {cost.params / 1e6:.3f} M parameters")
    display.say_per_class(classes, data.class_names)
    display.say_baseline(run.baseline(), scores["validate"].top1)
    display.out.print(f"Written to {path}; reloaded, and its output is the same to the last bit.")
    display.out.print(f"Load it without trainonce: {path}/README.md, its model card, says how.")


@app.command(name="list")
def list_names(as_json: Json = False) -> None:
    """List the recipes, data sets and geometries."""
    if as_json:
        recipes = {name: recipe.model_dump(mode="json") for name, recipe in RECIPES.items()}
        display.print_json({"recipes": recipes, "data": DATASET_NAMES, "geometries": GEOMETRIES})
        return
    display.out.print(display.recipes_table(list(RECIPES.values())))
    display.out.print(f"\nData sets: {', '.join(DATASET_NAMES)}, or the path of an image folder or .npz file")
    display.out.print(
        f"Geometries: {', '.join(GEOMETRIES)}; tiny is for images of about 8 pixels, light for trainings of minutes"
    )


for commands in (
    cli_search,
    cli_latency,
    cli_export,
    cli_fit,
    cli_subnet,
    cli_report,
    cli_lab,
    cli_study,
    cli_ofa,
    cli_verify,
):
    commands.register(app)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        display.out.print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; print a refusal as a sentence."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show is spelled out, on stderr it is anyway
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: display.err.print(f"Warning: {message}")
    warnings.filterwarnings("ignore", module="PIL")  # which names no file; what matters is an error that does
    _stand_in_for_home()
    try:
        app()
    except UserError as error:
        _say(error, 2)
    except RunError as error:
        _say(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _say("the memory is full; what was saved is safe. Smaller images, networks or batches need less", 1)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _say(f"the system refused{where}: {error.strerror or error}", 1)
    except Stopped as stopped:
        _say(stopped, stopped.code)


def _stand_in_for_home() -> None:
    """Where this user has no home directory, let a folder for temporary files be it: libraries keep things there."""
    try:
        Path.home()
    except RuntimeError:
        with contextlib.suppress(OSError):  # then what needs one says so
            os.environ["HOME"] = str(private_folder())
            display.err.print(f"There is no home directory: {os.environ['HOME']} is used instead, until it is cleared.")


def _say(error: Exception | str, code: int) -> None:
    if is_first_process() or not (isinstance(error, UserError | RunError) and error.everywhere):
        display.err.print(Text.assemble(("trainonce:", "bold red"), f" {error}"))
    sys.exit(code)
