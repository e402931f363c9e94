"""From images to a network for each device, in a given time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from trainonce.data import DataSet, DataSource, load_dataset
from trainonce.data.splits import Fold
from trainonce.errors import UserError
from trainonce.models import Supernet
from trainonce.pipeline.beginning import Beginning, begin, default_recipe
from trainonce.pipeline.fitted import FitSettings, Fitted, fit_recorded
from trainonce.pipeline.fitting import Watch, fit_supernet
from trainonce.pipeline.folds import OverFolds, over_folds, refuse_folds, refuse_other_folds, write_folds
from trainonce.pipeline.machine import device_named, use_threads
from trainonce.pipeline.outlook import learned, outlook
from trainonce.pipeline.searching import Amount
from trainonce.pipeline.training import balanced
from trainonce.recipes import hides_known, load_recipe
from trainonce.run.directory import RunDirectory, Start
from trainonce.search.resources import quantity

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
    """What it took, those of earlier sessions with it; where it was stopped, this session's."""
    finished: bool
    """Whether all are there: not where the watch's `should_stop` said so."""
    folds: tuple["FittedDevices", ...] = ()
    """With `folds`, those that are finished; `devices` is then empty, and `plan` the first one's."""
    over_folds: tuple[OverFolds, ...] = ()
    """With `folds`, what each device's networks came to; none unless finished."""
    outlook: str = ""
    """Whether more time would help, in a sentence, by validate before fine-tuning; empty unless finished."""


def fit(
    data: DataSet | str | Path,
    minutes: float,
    *,
    max_macs: Sequence[Amount] = (),
    recipe: str | Path | None = None,
    class_balance: float | None = None,
    out: str | Path | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    stages: bool = False,
    kernels: bool = False,
    rigid: Sequence[str] = (),
    family: str | None = None,
    geometry: str | None = None,
    width: float | None = None,
    resolutions: Sequence[int] | None = None,
    image_size: int | None = None,
    grey: bool = False,
    train_images: int | None = None,
    split_seed: int = 0,
    folds: int | None = None,
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

    `max_macs` are the devices, the most MACs of each: 10 or "10M" is ten million. The run is in `out` or
    runs/DATA-fit-SEED. Called again, it goes on. With `folds` this is done so often, in a share of the time each, every
    time with another part of the images as the test split; the runs are `fold-1`, … in `out`. `on_start` is called
    where the work begins: from there on the watch's `should_stop` is asked. `where` is what refusals call the options.
    Raises `UserError` for what cannot be, before anything is written.
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
    beginning = partial(
        begin,
        data=data,
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
        resolutions=resolutions,
        seed=seed,
    )
    fitting = _Fitting(
        begin=lambda fold: beginning(partial(load, fold=fold)),
        name="images" if isinstance(data, DataSet) else DataSource(name_or_path=str(data)).name,
        recipe=recipe,
        class_balance=class_balance,
        max_macs=max_macs,
        finetune_lr=finetune_lr,
        seed=seed,
        device=device_named(device),
        watch=watch or Watch(),
        on_plan=on_plan,
        on_start=on_start,
        where=where,
    )
    return fitting.whole(out, minutes) if folds is None else fitting.folded(out, minutes, folds)


@dataclass(frozen=True, kw_only=True)
class _Fitting:
    """What is the same for all folds."""

    begin: Callable[[Fold | None], Beginning]
    name: str
    """Of the images, as the default directory of folds has it."""
    recipe: str | Path | None
    class_balance: float | None
    max_macs: Sequence[Amount]
    finetune_lr: float | None
    seed: int
    device: str
    watch: Watch
    on_plan: Callable[[FitPlan], None]
    on_start: Callable[[], None]
    where: str

    def whole(self, out: str | Path | None, minutes: float, fold: Fold | None = None) -> FittedDevices:
        """Fit it once: all the images, or with a fold as the test split into `out`."""
        begun = self.begin(fold)
        images, net = begun.data, begun.net
        largest = net.cost_of(net.space.largest()).macs
        values = {
            "minutes": minutes,
            "max_macs": [quantity("macs", most) for most in self.max_macs] or [share * largest for share in SHARES],
            "finetune_lr": self.finetune_lr,
            "seed": self.seed,
            "device": self.device,
        }
        settings = FitSettings.parse(values, where=self.where)
        run = RunDirectory(out or Path("runs") / f"{images.name}-fit-{self.seed}")
        plan = FitPlan(run=run, data=images, net=net, settings=settings, start=begun.start)
        if fold is None or fold[0] == 1:
            self.on_plan(plan)
            self.on_start()
        began = time.monotonic()
        recipe = load_recipe(self.recipe or default_recipe(begun, for_published="quick"))
        recipe = balanced(recipe, self.class_balance)
        fitted = fit_supernet(net, recipe, images, run, settings, self.watch, start=begun.start)
        seconds = time.monotonic() - began if fitted is None else fit_recorded(run).seconds
        shared = [one.before.top1 for one in fitted or () if not one.before_subnets]
        hidden = bool(shared) and hides_known(images.varied_by(run.checked_config().recipe).augmentation)
        verdict = outlook(learned(run.metrics()), fmean(shared)) if shared and not hidden else ""
        return FittedDevices(
            plan=plan, devices=tuple(fitted or ()), seconds=seconds, finished=fitted is not None, outlook=verdict
        )

    def folded(self, out: str | Path | None, minutes: float, folds: int) -> FittedDevices:
        """Fit it once for each fold, each in its share of the time."""
        refuse_folds(folds)
        place, done = Path(out or f"runs/{self.name}-fit-{self.seed}-folds-{folds}"), list[FittedDevices]()
        refuse_other_folds(place, folds)
        for number in range(1, folds + 1):
            self.watch.stage(f"Fold {number} of {folds}")
            try:
                found = self.whole(place / f"fold-{number}", minutes / folds, (number, folds))
            except UserError as error:
                share = f"{minutes / folds:.3g} of the {minutes:g} minutes"
                raise UserError(
                    f"fold {number} of {folds}, which has {share} (those that follow are a fold's): {error}"
                ) from error
            if not found.finished:
                break
            done.append(found)
        finished = len(done) == folds
        over = over_folds([one.devices for one in done]) if finished else []
        if finished:
            write_folds(place, over)
        first = done[0] if done else found
        return FittedDevices(
            plan=first.plan,
            devices=(),
            seconds=sum(one.seconds for one in done) + (0.0 if finished else found.seconds),
            finished=finished,
            folds=tuple(done),
            over_folds=tuple(over),
        )
