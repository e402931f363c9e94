"""The best subnets of one supernet on whole and on smaller images, as they come out of it and fine-tuned.

    python benchmarks/worth_sizes.py SET … [--images 70000] [--seconds 10] [--out worth_sizes.jsonl]

Each SET, as `worth.py` takes it, is trained by `quick` in the geometry `light` with so many images in all. For devices
of 50 and 100% of the largest MACs the candidate of least loss on validate of each of the two largest sizes of images is
fine-tuned for so many CPU seconds by three seeds. Each is a line of the file, with top-1 on validate and on test.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from common import machine
from trainonce.data import DataSet
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.evaluation.population import draw_candidates
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES
from trainonce.records import append_line
from trainonce.run.directory import RunDirectory
from trainonce.settings import JsonObject
from trainonce.subnets.finetune import FinetuneSettings
from trainonce.training.loop import train_supernet
from worth import loaded
from worth_ours import finetuned

DEVICES = (0.5, 1.0)
CANDIDATES = 12
SEEDS = 3


def trained(data: DataSet, images: int) -> MobileNetV3:
    """A supernet by `quick`, of so many images in all."""
    settings = MobileNetV3Settings.for_images(
        image_size=data.image_size, in_channels=data.channels, num_classes=data.num_classes, geometry="light"
    )
    net, recipe = MobileNetV3(settings, seed=0), RECIPES["quick"]
    with TemporaryDirectory() as folder:
        scaled = recipe.scaled(images / len(data.train) / recipe.epochs)
        train_supernet(net, scaled, data, RunDirectory(Path(folder) / "run"), seed=0)
    return net.eval()


def compare(net: MobileNetV3, data: DataSet, seconds: float) -> list[JsonObject]:
    """For each device and size of images the best candidate, before and after fine-tuning."""
    settings = EvaluateSettings(calibration_images=400)
    validate, test = Evaluator(data, "validate", settings), Evaluator(data, "test", settings)
    most, found = net.cost_of(net.space.largest()).macs, list[JsonObject]()
    for device in DEVICES:
        [archs] = draw_candidates(net.cost, [device * most], CANDIDATES, seed=0)
        for size in sorted({arch["resolution"] for arch in archs})[-2:]:
            scores = {arch: validate(net, arch) for arch in archs if arch["resolution"] == size}
            best = min(scores, key=lambda arch: scores[arch].loss)
            tuned = []
            for seed in range(SEEDS):
                how = FinetuneSettings.by("sgd", lr=None, epochs=1, label_smoothing=0.1, seed=seed)
                network = validate.recalibrated(net, best)
                result = finetuned(network, scores[best].top1, validate, seconds, how, always=True)
                if "validate_after" in result.about:
                    tuned.append([result.validate, test.score(result.network).top1])
            before = [scores[best].top1, test(net, best).top1]
            about = {"device": device, "size": size, "macs": net.cost_of(best).macs, "loss": scores[best].loss}
            found.append(about | {"before": before, "tuned": tuned, "said": result.about["finetuned"]})
    return found


def options(
    arguments: Sequence[str] | None, about: str | None, *, images: int, seconds: float, out: str
) -> argparse.Namespace:
    """What was asked of a benchmark that trains a supernet of each set and fine-tunes subnets of it."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--images", type=int, default=images, help="trained, all epochs together")
    parser.add_argument("--seconds", type=float, default=seconds, help="of fine-tuning")
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each set, and print what was found."""
    asked = options(arguments, __doc__, images=70_000, seconds=10.0, out="worth_sizes.jsonl")
    torch.set_num_threads(1)
    print(machine())
    for name_or_path in asked.sets:
        name, data = loaded(name_or_path, 5000)
        net = trained(data, asked.images)
        if len(net.space.by_image_size()) == 1:
            print(f"{name}: of {data.image_size} pixels there are no smaller images to choose from")
            continue
        for line in compare(net, data.varied_by(RECIPES["quick"]), asked.seconds):
            append_line(asked.out, {"data": name, "images": asked.images, "seconds": asked.seconds} | line)
            print(name, line, flush=True)


if __name__ == "__main__":
    main()
