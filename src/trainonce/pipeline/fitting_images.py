"""From images to a network for each device, in a given time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainonce.data import DataSet, load_dataset
from trainonce.models import Supernet
from trainonce.pipeline.beginning import begin, default_recipe
from trainonce.pipeline.fitting import FitSettings, Fitted, Watch, fit_supernet
from trainonce.pipeline.machine import device_named, use_threads
from trainonce.recipes import load_recipe
from trainonce.run.directory import RunDirectory, Start

SHARES = (0.25, 0.5, 1.0)
"""Of the largest network's MACs: the devices, where none is named."""


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """What is about to be fitted."""

    run: RunDirectory
    data: DataSet
    net: Supernet
    settings: FitSettings
    start: Start | None
    """Where the network comes from, where it is a person's own or another run's."""


@dataclass(frozen=True, kw_only=True)
class FittedDevices:
    """The networks, one a device."""

    plan: FitPlan
    devices: tuple[Fitted, ...]
    """None unless finished."""
    seconds: float
    finished: bool
    """Whether all are there: not where the watch's `should_stop` said so."""


def fit(
    data: DataSet | str | Path,
    minutes: float,
    *,
    max_macs: Sequence[float] = (),
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    stages: bool = False,
    kernels: bool = False,
    rigid: Sequence[str] = (),
    family: str | None = None,
    geometry: str | None = None,
    width: float | None = None,
    image_size: int | None = None,
    grey: bool = False,
    train_images: int | None = None,
    split_seed: int = 0,
    skip_broken: bool = False,
    finetune_lr: float | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    on_plan: Callable[[FitPlan], None] = lambda _: None,
    on_start: Callable[[], None] = lambda: None,
    watch: Watch | None = None,
    where: str = "the options",
) -> FittedDevices:
    """Train once, and hand over a network for every device, in a given time: `trainonce fit`, whose options these are.

    `max_macs` are the devices, the most million MACs of each; the run is in `out` or runs/DATA-fit-SEED. Called again,
    it goes on. `on_start` is called where the work begins: from there on the watch's `should_stop` is asked. `where` is
    what refusals call the options. Raises `UserError` for what cannot be, before anything is written.
    """
    use_threads(threads)
    load = partial(
        load_dataset,
        data_dir=data_dir,
        grey=grey,
        train_images=train_images,
        split_seed=split_seed,
        skip_broken=skip_broken,
    )
    begun = begin(
        load,
        data,
        image_size=image_size,
        model=model,
        weights=weights,
        stages=stages,
        kernels=kernels,
        rigid=rigid,
        family=family,
        geometry=geometry,
        light=True,
        width=width,
        seed=seed,
    )
    images, net = begun.data, begun.net
    largest = net.cost_of(net.space.largest()).macs
    values = {
        "minutes": minutes,
        "max_macs": [million * 1e6 for million in max_macs] or [share * largest for share in SHARES],
        "finetune_lr": finetune_lr,
        "seed": seed,
        "device": device_named(device),
    }
    settings = FitSettings.parse(values, where=where)
    run = RunDirectory(out or Path("runs") / f"{images.name}-fit-{seed}")
    plan = FitPlan(run=run, data=images, net=net, settings=settings, start=begun.start)
    on_plan(plan)
    on_start()
    began = time.monotonic()
    fitted = fit_supernet(
        net,
        load_recipe(recipe or default_recipe(begun, for_published="quick")),
        images,
        run,
        settings,
        watch or Watch(),
        start=begun.start,
    )
    return FittedDevices(
        plan=plan,
        devices=tuple(fitted or ()),
        seconds=time.monotonic() - began,
        finished=fitted is not None,
    )
