"""Is training once worth it? Accuracy for a person's minutes: one supernet for three devices against its rivals.

    python benchmarks/worth.py [SET …] [--minutes 2 10 40] [--seeds 3] [--recipe rss sandwich] [--out worth.jsonl]
        [--picture worth.png]

A SET is `digits`, `fashion-mnist`, `cifar10` or another name that `load_dataset` knows, or a folder of images; without
any, those three. At most 5,000 training images are used (`--train-images`), photos at 64 pixels. The devices are 25, 50
and 100% of the MACs of the largest subnet (the smallest subnet where 25% is less than that has).

**Ours**: one supernet, by a recipe as long as its share of the budget allows (`--split`: training, choosing,
finetuning); for each device the one of least loss on validate of some random subnets near its MACs; if finetuning has a
share, each finetuned in its part of what is left, and kept where its loss on validate fell.

**Rivals**, each device's in a third of the budget: (a) the same architectures trained alone from random weights
(`alone`; those that the first of our settings in the file chose, and one that several devices have in the time of
all of them); (b) a plain ResNet of at most those MACs (`resnet`);
(c) timm's mobilenetv3_small_050 and resnet10t where timm is installed; (d) a support vector machine on HOG and colours,
logistic regression on the pixels (`sklearn`). `--alone 1 2 3` trains (a) also in a half and the whole of the budget:
`break_even` in `worth_table.py` says from how many devices on training once is ahead.

Time is `time.process_time` with one thread: seconds that a core worked for this process, so that whatever else runs on
the machine hardly matters. All that a person waits for counts: timing a few steps, training, recalibrating, choosing,
finetuning, scoring on validate; not loading the images, compiling the native kernels, or scoring on test. `--rates` are
the rivals' learning rates, by AdamW or with `--rivals-by muon` by what `quick` trains by, `--lr-factor` and
`--crop-scale` ours: of several settings of a side, validate chooses.

Every network is a line of the file; run again it does what is missing. It ends with two tables of all that the file
holds: what each side came to, and by how much ours is ahead, in bold where that misses a goal (`GOALS` in
`worth_table.py`); `--every-setting` adds one with all settings.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import machine
from trainonce.cost.macs import Cost
from trainonce.data import DataSet, load_dataset
from trainonce.errors import UserError
from trainonce.models import MobileNetV3, MobileNetV3Settings, Supernet
from trainonce.nn.fast import with_fast_blocks
from trainonce.pipeline.fitting import CHOOSING_SHARE
from trainonce.recipes import load_recipe
from trainonce.records import append_line, read_lines
from trainonce.subnets.finetune import FinetuneSettings
from worth_ours import OurSettings, refuse_one_name, train_once
from worth_rivals import Images, Steps, Trained, counted_macs, logistic, matched_width, plain_resnet, svm, train_alone
from worth_table import ALONE, DEVICES, OURS, RESNET, Result, ahead, draw, overview, table

SETS = ("fashion-mnist", "cifar10", "digits")
SIDES = (OURS, ALONE, RESNET, "timm", "sklearn")
TIMM = ("mobilenetv3_small_050", "resnet10t")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One set at one budget and seed, and where its results go."""

    data: DataSet
    name: str
    geometry: str | None
    minutes: float
    seed: int
    out: Path
    resolutions: tuple[int, ...] | None = None
    """Sizes of images to choose from; None for the geometry's."""

    @property
    def seconds(self) -> float:
        """The budget in CPU seconds."""
        return 60 * self.minutes

    def supernet(self, seed: int) -> Supernet:
        """A supernet for the set's images."""
        sizes: dict[str, Any] = {} if self.resolutions is None else {"resolutions": self.resolutions}
        settings = MobileNetV3Settings.for_images(
            image_size=self.data.image_size,
            in_channels=self.data.channels,
            num_classes=self.data.num_classes,
            geometry=self.geometry,
            **sizes,
        )
        return MobileNetV3(settings, seed=seed)

    def result(
        self,
        side: str,
        trained: Trained,
        *,
        settings: str = "",
        sharing: int = len(DEVICES),
        device: float | None = None,
        cost: Cost | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Result:
        """A result of this set, geometry, budget and seed."""
        data, geometry, minutes = self.group
        return Result(
            data=data,
            geometry=geometry,
            minutes=minutes,
            seed=self.seed,
            side=side,
            settings=settings,
            sharing=sharing,
            device=device,
            macs=None if cost is None else cost.macs,
            params=None if cost is None else cost.params,
            validate=trained.validate,
            test=trained.test,
            seconds=round(trained.seconds, 2),
            about={"steps": trained.steps, "chosen": trained.settings} | dict(about or {}),
        )

    @property
    def group(self) -> tuple[str, str, float]:
        """As `Result.group`."""
        return self.name, self.geometry or "default", self.minutes

    def record(self, result: Result) -> None:
        """Append a result to the file and say it."""
        append_line(self.out, asdict(result))
        device = "all devices" if result.device is None else f"{result.device:.0%}"
        print(
            f"{self.name}, {self.minutes:g} min, seed {self.seed}: {result.name}, {result.settings}: {device}: "
            f"validate {result.validate:.1f}, test {result.test:.1f}, {result.seconds:.0f} s",
            flush=True,
        )

    def recorded(self) -> list[Result]:
        """What the file holds of this set, geometry, budget and seed."""
        return [one for one in results_in(self.out) if one.group == self.group and one.seed == self.seed]

    def missing(self, side: str, settings: str, sharing: int = len(DEVICES)) -> list[float]:
        """The devices of which a side has no result yet."""
        there = [r for r in self.recorded() if (r.side, r.settings, r.sharing) == (side, settings, sharing)]
        return (
            [] if any(r.device is None for r in there) else [d for d in DEVICES if d not in {r.device for r in there}]
        )


def results_in(path: Path) -> list[Result]:
    """The results of a file; of several of one network the last."""
    found = [Result(**line) for line in read_lines(path)]
    return list({(*r.group, r.seed, r.side, r.settings, r.sharing, r.device): r for r in found}.values())


def ours(bench: Bench, settings: OurSettings) -> Iterator[Result]:
    """Train once, choose and finetune for each device: three results."""
    net = bench.supernet(bench.seed)
    networks = train_once(net, bench.data, settings, seconds=bench.seconds, seed=bench.seed)
    for device, (arch, trained, about) in zip(DEVICES, networks, strict=True):
        cost = net.cost_of(arch)
        yield bench.result(OURS, trained, settings=str(settings), device=device, cost=cost, about=about)


# Rivals


def alone(bench: Bench, steps: Steps, sharing: int) -> Iterator[Result]:
    """The devices' architectures trained from random weights, each in its part of the budget.

    One that several devices have is trained once, in the parts of all of them.
    """
    settings = str(steps)
    net = bench.supernet(bench.seed + 1)
    chosen: dict[float | None, str] = {}
    for one in bench.recorded():
        if one.side == OURS:
            chosen.setdefault(one.device, one.about["architecture"])
    missing = bench.missing(ALONE, settings, sharing)
    if not chosen.keys() >= set(missing):
        print(f"{bench.name}: no architecture was chosen yet: {ALONE} needs {OURS}")
        return
    for text in dict.fromkeys(chosen[device] for device in missing):
        arch, devices = net.space.parse(text), [device for device in DEVICES if chosen.get(device) == text]
        network = with_fast_blocks(net.extract(arch), trained=True)
        seconds = bench.seconds * min(1.0, len(devices) / sharing)
        trained = train_alone(network, bench.data, seconds=seconds, steps=steps, seed=bench.seed)
        trained = replace(trained, seconds=trained.seconds / len(devices))
        for device in (one for one in devices if one in missing):
            yield bench.result(
                ALONE,
                trained,
                settings=settings,
                sharing=sharing,
                device=device,
                cost=net.cost_of(arch),
                about={"architecture": text},
            )


def resnet(bench: Bench, steps: Steps) -> Iterator[Result]:
    """A plain ResNet for each device, in a third of the budget."""
    net, data = bench.supernet(bench.seed), bench.data
    images = Images(size=data.image_size, channels=data.channels, classes=data.num_classes)
    largest = net.cost_of(net.space.largest()).macs
    for device in bench.missing(RESNET, str(steps)):
        width = matched_width(int(device * largest), images)
        torch.manual_seed(bench.seed)
        network = plain_resnet(width, images)
        yield _trained_network(bench, RESNET, network, steps, device=device, about={"width": width})


def timm_networks(bench: Bench, steps: Steps) -> Iterator[Result]:
    """timm's small networks from scratch, each in a third of the budget; nothing where timm does not import."""
    try:
        timm = import_module("timm")
    except ImportError as error:
        print(f"timm is not installed, or does not import ({error}): its networks are left out")
        return
    for name in TIMM:
        if bench.missing(name, str(steps)):
            torch.manual_seed(bench.seed)
            network = timm.create_model(
                name, pretrained=False, in_chans=bench.data.channels, num_classes=bench.data.num_classes
            )
            yield _trained_network(bench, name, network, steps, device=None, about={})


def _trained_network(
    bench: Bench, side: str, network: nn.Module, steps: Steps, *, device: float | None, about: dict[str, Any]
) -> Result:
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    params = sum(parameter.numel() for parameter in network.parameters())
    cost = Cost(macs=counted_macs(network, bench.data.channels, bench.data.image_size), params=params)
    seconds = bench.seconds / len(DEVICES)
    trained = train_alone(network, bench.data, seconds=seconds, steps=steps, seed=bench.seed)
    return bench.result(side, trained, settings=str(steps), device=device, cost=cost, about=about)


def classifiers(bench: Bench) -> Iterator[Result]:
    """scikit-learn's. They take the time that they take."""
    for name, fit in (("svm", svm), ("logistic", logistic)):
        if bench.missing(name, ""):
            yield bench.result(name, fit(bench.data))


# All of it


def measure(bench: Bench, asked: argparse.Namespace, settings: Sequence[OurSettings]) -> None:
    """Do what is missing of one set at one budget and seed."""
    if OURS in asked.sides:
        for one in settings:
            for result in ours(bench, one) if bench.missing(OURS, str(one)) else ():
                bench.record(result)
    for rate in asked.rates or [{"adamw": 3e-3, "muon": 0.02}[asked.rivals_by]]:
        steps = Steps(optimizer=asked.rivals_by, rate=rate)
        rivals: list[Iterator[Result]] = []
        if ALONE in asked.sides:
            rivals += [alone(bench, steps, sharing) for sharing in asked.alone]
        rivals += [resnet(bench, steps)] if RESNET in asked.sides else []
        rivals += [timm_networks(bench, steps)] if "timm" in asked.sides else []
        for results in rivals:
            for result in results:
                bench.record(result)
    for result in classifiers(bench) if "sklearn" in asked.sides else ():
        bench.record(result)


def loaded(name_or_path: str, most: int) -> tuple[str, DataSet]:
    """A set by its name or path, with at most so many training images, and what it is called.

    Where training images are left out, validate has at most a fifth as many: whoever has 5,000 does not hold out 8,000.
    """
    data = load_dataset(name_or_path)
    if len(data.train) > most:
        data = load_dataset(name_or_path, train_images=most)
        data = replace(data, validate=data.validate.drawn(min(most // 5, len(data.validate)), seed=0))
    return data.source.name, data


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 10.0, 40.0], help="budgets, of one core")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--train-images", type=int, default=5000, help="at most")
    parser.add_argument("--geometry", help="of the supernet; default: the library's for the image size")
    parser.add_argument("--one-size", action="store_true", help="of images, whatever the geometry has to choose from")
    parser.add_argument("--recipe", nargs="+", default=["rss", "sandwich"], help="names or TOML files")
    parser.add_argument("--lr-factor", type=float, nargs="+", default=[1.0], help="multiplies the recipe's rates")
    parser.add_argument("--crop-scale", type=float, help="smallest area of our crops; default: the set's own")
    parser.add_argument(
        "--split",
        type=float,
        nargs=3,
        metavar=("TRAIN", "CHOOSE", "FINETUNE"),
        help="shares of the budget; default: as `fit` has it, 0.05 to choose and what the recipe says to finetune",
    )
    parser.add_argument(
        "--finetune-rate", type=float, help="default: what suits the recipe's optimizer, as `fit` has it"
    )
    parser.add_argument("--candidates", type=int, default=24, help="subnets scored for each device, at most")
    parser.add_argument("--calibration-images", type=int, default=400)
    parser.add_argument("--rates", type=float, nargs="+", help="of the rivals (default: 0.003, by Muon 0.02)")
    parser.add_argument("--rivals-by", choices=["adamw", "muon"], default="adamw", help="their optimizer")
    parser.add_argument("--alone", type=int, nargs="+", default=[3], help="numbers of devices that share the budget")
    parser.add_argument(
        "--sides", nargs="*", choices=SIDES, default=list(SIDES), help="what is measured; none: nothing"
    )
    parser.add_argument("--every-setting", action="store_true", help="also show all settings of each side")
    parser.add_argument("--out", type=Path, default=Path("worth.jsonl"))
    parser.add_argument("--picture", type=Path, help=".png, .svg or .pdf")
    asked = parser.parse_args(arguments)
    split = asked.split or [1, 0, 0]
    if not all(share >= 0 for share in split) or abs(sum(split) - 1) > 1e-6 or split[0] == 0:
        parser.error("the shares of --split are 0 or more and sum to 1, and some of it is training")
    return asked


def split_of(recipe: str) -> tuple[float, float, float]:
    """The shares of the time for training, choosing and fine-tuning that `fit` has with a recipe."""
    finetuning = load_recipe(recipe).finetune_share
    return (1 - CHOOSING_SHARE - finetuning, CHOOSING_SHARE, finetuning)


def finetune_rate_of(recipe: str, rate: float | None = None) -> float:
    """The rate at which `fit` fine-tunes the subnets of a recipe, by default or as given."""
    return FinetuneSettings.by(load_recipe(recipe).finetuned_by, epochs=1, lr=rate).lr


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then print the table."""
    asked = options(arguments)
    refuse_one_name(asked.recipe)
    torch.set_num_threads(1)
    print(machine())
    settings = [
        OurSettings(
            recipe=recipe,
            lr_factor=factor,
            split=tuple(asked.split or split_of(recipe)),
            crop_scale=asked.crop_scale,
            finetune_rate=finetune_rate_of(recipe, asked.finetune_rate),
            candidates=asked.candidates,
            calibration_images=asked.calibration_images,
        )
        for recipe, factor in product(asked.recipe, asked.lr_factor)
    ]
    for name_or_path in (asked.sets or SETS) if asked.sides else ():
        name, data = loaded(name_or_path, asked.train_images)
        seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
        for minutes, seed in product(asked.minutes, seeds):
            bench = Bench(
                data=data,
                name=name,
                geometry=asked.geometry,
                resolutions=(data.image_size,) if asked.one_size else None,
                minutes=minutes,
                seed=seed,
                out=asked.out,
            )
            measure(bench, asked, settings)
    found = results_in(asked.out)
    tables = [overview(found), ahead(found), *([table(found, every_setting=True)] if asked.every_setting else [])]
    print("\n" + "\n\n".join(tables))
    if asked.picture is not None:
        draw(found, asked.picture)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
