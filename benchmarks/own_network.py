"""A trained network made elastic, against what one would do without: pruning and fine-tuning it for each device.

    python benchmarks/own_network.py SET … --model timm:NAME --from FILE [--minutes 10] [--seeds 3] [--image-size 96]
        [--rates 1e-3] [--lr-factor 1] [--recipe transfer] [--stages] [--out own_network.jsonl] [--every-setting]

A SET is a name that `load_dataset` knows, or a folder of images; at most 5,000 training images are used. The devices
are 25, 50 and 100% of the network's MACs. Everything comes out of one budget of CPU seconds of one thread
(`time.process_time`), shared by the three devices; what counts is what counts in `worth.py`.

**Ours**: one training of the supernet, the best on validate of some random subnets near each device's MACs, each
fine-tuned in its share of what is left (`--split`).

**Pruned** (needs torch-pruning): the network is fine-tuned on the images for a share of the budget, and is the first
device's. For each other device it is pruned to the device's MACs (groups of channels, by their L2 norm, in one step and
by the same share of every layer, to multiples of 8: the library's own example) and fine-tuned in half of what is left.

**Resized**: the network is fine-tuned for each device by itself, in a third of the budget, on images of the largest
size (in steps of 16 pixels) at which it has no more than the device's MACs.

**Scratch**: timm's mobilenetv3_small_050 with random weights at ten times the rate, trained once, in a third of the
budget, for the devices whose MACs it does not exceed.

Of several rates of a side, validate chooses. Every network is a line of the file; run again it does what is missing.
"""

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

import worth
from common import machine
from trainonce.cost.macs import Cost
from trainonce.data import DataSet, load_dataset
from trainonce.models.traced import Traced, elastic, network_named
from trainonce.nn.plain import resize
from worth_ours import OurSettings
from worth_rivals import Steps, counted_macs, train_alone
from worth_table import DEVICES, Result, ahead, table

OURS, PRUNED, RESIZED, SCRATCH = SIDES = ("ours", "pruned", "resized", "scratch")
WHOLE = 0.4
"""Share of the budget in which the network is fine-tuned before it is pruned."""
SMALL = "mobilenetv3_small_050"
FROM_NOTHING = 10
"""How many times the rate of fine-tuning a network has that begins with random weights."""
PIXELS_APART = 16
"""Between the sizes of images that are tried for a device."""


@dataclass(frozen=True, kw_only=True)
class OwnBench(worth.Bench):
    """One set at one budget and seed, for a network of one's own."""

    net: Traced
    network: nn.Module
    """The network with its weights, and a head for the set's classes."""

    def supernet(self, seed: int) -> Traced:
        """A copy of the network's supernet, whatever the seed: its weights are given."""
        return copy.deepcopy(self.net)

    def cost_of(self, network: nn.Module) -> Cost:
        """What a network costs for one image."""
        macs = counted_macs(network, self.data.channels, self.data.image_size)
        return Cost(macs=macs, params=sum(parameter.numel() for parameter in network.parameters()))


def ours(bench: OwnBench, settings: OurSettings) -> Iterator[Result]:
    """One training, three subnets."""
    for result in worth.ours(bench, settings):
        yield replace(result, settings=_named(settings, bench.net))


def _named(settings: OurSettings, net: Traced) -> str:
    """The settings, and on images of which sizes."""
    return f"{settings}, {', '.join(map(str, net.settings.resolutions))} pixels"


def pruned(bench: OwnBench, steps: Steps) -> Iterator[Result]:
    """The network fine-tuned, pruned for each device, and fine-tuned again."""
    began, seconds = time.process_time(), bench.seconds
    network = copy.deepcopy(bench.network)
    trained = train_alone(network, bench.data, seconds=WHOLE * seconds, steps=steps, seed=bench.seed)
    cost = bench.cost_of(network)
    spent = time.process_time() - began
    yield bench.result(PRUNED, trained, settings=str(steps), device=1.0, cost=cost)
    for device in (d for d in DEVICES if d < 1):
        began = time.process_time()
        smaller = pruned_to(network, int(device * cost.macs), bench.data)
        left = (seconds - spent) / (len(DEVICES) - 1) - (time.process_time() - began)
        trained = train_alone(smaller, bench.data, seconds=left, steps=steps, seed=bench.seed)
        yield bench.result(PRUNED, trained, settings=str(steps), device=device, cost=bench.cost_of(smaller))


def pruned_to(network: nn.Module, most: int, data: DataSet) -> nn.Module:
    """The network with the least share of its channels pruned that leaves at most so many MACs."""
    pruning: Any = import_module("torch_pruning")
    example_BCHW = torch.zeros(1, data.channels, data.image_size, data.image_size)
    low, high = 0.0, 1.0
    for _ in range(8):
        share = (low + high) / 2
        if counted_macs(_pruned_by(pruning, network, share, example_BCHW), data.channels, data.image_size) > most:
            low = share
        else:
            high = share
    return _pruned_by(pruning, network, high, example_BCHW)


def _pruned_by(pruning: Any, network: nn.Module, share: float, example_BCHW: torch.Tensor) -> nn.Module:
    network = copy.deepcopy(network).eval()
    head = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    importance = pruning.importance.GroupMagnitudeImportance(p=2)
    pruner = pruning.pruner.BasePruner(
        network, example_BCHW, importance=importance, pruning_ratio=share, ignored_layers=[head], round_to=8
    )
    pruner.step()
    for parameter in network.parameters():
        parameter.grad = None
    return network


class _OnSmaller(nn.Module):
    """A network that sees its images in a smaller size."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        logits_BK: torch.Tensor = self.network(resize(x_BCHW, self.side))
        return logits_BK


def resized(bench: OwnBench, steps: Steps) -> Iterator[Result]:
    """The network fine-tuned for each device on images of its own size."""
    whole = bench.cost_of(bench.network).macs
    for device in bench.missing(RESIZED, str(steps)):
        network = _OnSmaller(copy.deepcopy(bench.network), bench.data.image_size)
        while (cost := bench.cost_of(network)).macs > device * whole:
            network.side -= PIXELS_APART
        seconds = bench.seconds / len(DEVICES)
        trained = train_alone(network, bench.data, seconds=seconds, steps=steps, seed=bench.seed)
        yield bench.result(RESIZED, trained, settings=str(steps), device=device, cost=cost)


def scratch(bench: OwnBench, steps: Steps) -> Iterator[Result]:
    """A small network from random weights, trained once for all devices that it fits: each has its part of the time."""
    timm: Any = import_module("timm")
    torch.manual_seed(bench.seed)
    network = timm.create_model(SMALL, in_chans=bench.data.channels, num_classes=bench.data.num_classes)
    cost, whole = bench.cost_of(network), bench.cost_of(bench.network).macs
    fits = [device for device in DEVICES if cost.macs <= device * whole]
    missing = [device for device in bench.missing(SCRATCH, str(steps)) if device in fits]
    if len(fits) < len(DEVICES):
        print(f"{SMALL} has {cost.macs / 1e6:.1f} M MACs: more than {len(DEVICES) - len(fits)} of the devices have")
    if missing:
        seconds = bench.seconds / len(DEVICES)
        trained = train_alone(network, bench.data, seconds=seconds, steps=steps, seed=bench.seed)
        trained = replace(trained, seconds=trained.seconds / len(fits))
        for device in missing:
            yield bench.result(SCRATCH, trained, settings=str(steps), device=device, cost=cost)


def loaded(name_or_path: str, asked: argparse.Namespace) -> tuple[DataSet, Traced, nn.Module]:
    """A set as the network wants it, the supernet, and the network, both with a new head."""
    given = network_named(asked.model, asked.weights)
    data = load_dataset(name_or_path, image_size=asked.image_size, mean=given.mean, std=given.std)
    if len(data.train) > asked.train_images:
        data = load_dataset(
            *(name_or_path,),
            image_size=asked.image_size,
            mean=given.mean,
            std=given.std,
            train_images=asked.train_images,
        )
        few = min(asked.train_images // 5, len(data.validate))
        data = replace(data, validate=data.validate.drawn(few, seed=0))
    example_BCHW = torch.zeros(1, data.channels, data.image_size, data.image_size)
    net = elastic(
        given.network,
        example_BCHW,
        num_classes=data.num_classes,
        resolutions=asked.resolutions,
        stages=asked.stages,
    )
    network = given.network
    name, head = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    if head.out_features != data.num_classes:
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, nn.Linear(head.in_features, data.num_classes))
    network.load_state_dict(network.state_dict() | net.network.state_dict())
    return data, net, network


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--model", required=True, help="see `trainonce train --help`")
    parser.add_argument("--from", dest="weights", help="a file of its weights")
    parser.add_argument("--minutes", type=float, default=10.0, help="of one core, for all devices together")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--train-images", type=int, default=5000, help="at most")
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--resolutions", type=int, nargs="*", help="sizes of images that subnets may have")
    parser.add_argument("--recipe", default="transfer")
    parser.add_argument("--lr-factor", type=float, nargs="+", default=[1.0], help="multiplies the recipe's rates")
    parser.add_argument("--split", type=float, nargs=3, default=[0.55, 0.05, 0.4])
    parser.add_argument("--finetune-rate", type=float, help="default: what suits the recipe's optimizer")
    parser.add_argument("--candidates", type=int, default=24, help="subnets scored for each device, at most")
    parser.add_argument("--calibration-images", type=int, default=400)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3], help="of the rivals' AdamW; ten times alone")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--every-setting", action="store_true", help="the table shows all settings of a side")
    parser.add_argument("--out", type=Path, default=Path("own_network.jsonl"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then print the table."""
    asked = options(arguments)
    torch.set_num_threads(1)
    print(machine())
    for name_or_path in asked.sets:
        data, net, network = loaded(name_or_path, asked)
        for seed in asked.seeds:
            bench = OwnBench(
                data=data,
                name=data.source.name,
                geometry=f"{data.image_size} pixels",
                minutes=asked.minutes,
                seed=seed,
                out=asked.out,
                net=net,
                network=network,
            )
            runs: list[tuple[str, str, Iterator[Result]]] = []
            for factor in asked.lr_factor:
                settings = OurSettings(
                    recipe=asked.recipe,
                    lr_factor=factor,
                    split=tuple(asked.split),
                    crop_scale=None,
                    finetune_rate=asked.finetune_rate,
                    candidates=asked.candidates,
                    calibration_images=asked.calibration_images,
                )
                runs.append((OURS, _named(settings, net), ours(bench, settings)))
            for rate in asked.rates:
                of_its_own, from_nothing = Steps(rate=rate), Steps(rate=FROM_NOTHING * rate)
                runs.append((PRUNED, str(of_its_own), pruned(bench, of_its_own)))
                runs.append((RESIZED, str(of_its_own), resized(bench, of_its_own)))
                runs.append((SCRATCH, str(from_nothing), scratch(bench, from_nothing)))
            for side, named, results in runs:
                if side in asked.sides and bench.missing(side, named):
                    for result in results:
                        bench.record(result)
    found = worth.results_in(asked.out)
    print(f"\n{table(found, every_setting=asked.every_setting)}\n\n{ahead(found)}")


if __name__ == "__main__":
    main()
