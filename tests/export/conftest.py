"""A run with random images and random weights, subnets taken out of it, and their ONNX files."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from trainonce.data import DataSet, load_dataset
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.export import TARGETS
from trainonce.export.certificate import Certificate, ReferenceLogits
from trainonce.export.exporting import export_subnet
from trainonce.export.reference import read_reference
from trainonce.models import MobileNetV3, ResNet, ResNetSettings
from trainonce.recipes import RECIPES
from trainonce.run import checkpoint
from trainonce.run.directory import RunConfig, RunDirectory
from trainonce.subnets import describe_subnet, write_subnet

SUBNETS = 3
"""The smallest, and random ones of which the first takes images of 8 pixels and the second of 6."""


@dataclass(frozen=True)
class Exported:
    """A subnet's directory, what it is held against, and its ONNX export."""

    subnet: Path
    expected: ReferenceLogits
    place: Path
    certificate: Certificate


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, make_net: Callable[..., MobileNetV3]) -> RunDirectory:
    """A run of step 3 with `SUBNETS` subnets in it: subnets/0, subnets/1, …"""
    folder = tmp_path_factory.mktemp("export")
    draw = np.random.default_rng(0)
    labels = np.arange(200) % 3
    patterns = draw.integers(0, 180, (3, 8, 8))  # so that classes look different, to a random network too
    images = (patterns[labels] + draw.integers(0, 76, (200, 8, 8))).astype(np.uint8)
    np.savez(folder / "images.npz", train_images=images, train_labels=labels)
    data = load_dataset(str(folder / "images.npz"))
    net = make_net(resolutions=(6, 8)).eval()
    generator = torch.Generator().manual_seed(3)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and "weight" in name:
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    evaluator = Evaluator(data, "validate", EvaluateSettings(calibration_images=24, calibration_batch=12))
    with torch.no_grad():  # so that the smallest subnet's classes are about equally frequent
        smallest = evaluator.recalibrated(net, net.space.smallest())
        net.classifier.bias.sub_(smallest(torch.cat(evaluator.calibration_batches)).mean(0))
    run = RunDirectory(folder / "run")
    run.create(
        RunConfig(
            data=data.source,
            data_fingerprint=data.fingerprint(),
            family=net.family,
            model=net.settings.model_dump(mode="json"),
            recipe=RECIPES["rss"],
        )
    )
    checkpoint.save(run.checkpoints, 3, {"weights": net.state_dict()}, {"step": 3})
    rng = random.Random(1)
    drawn = [net.space.restrict({"resolution": (size,)}).sample(rng) for size in (8, 6)]
    for number, arch in enumerate((net.space.smallest(), *drawn)):
        network = evaluator.recalibrated(net, arch)
        description = describe_subnet(net, arch, data) | {
            "recalibrated": None,
            "scores": {},
            "trained": {"step": 3},
        }
        write_subnet(run.subnets / str(number), network, description)
    return run


@pytest.fixture(scope="session")
def exported(home: RunDirectory) -> Callable[[int], Exported]:
    """The ONNX export of a subnet, made once: `exported(0)`."""
    made: dict[int, Exported] = {}

    def export(number: int) -> Exported:
        if number not in made:
            subnet = home.subnets / str(number)
            expected = ReferenceLogits.of(read_reference(subnet, images=16))
            place, certificate = export_subnet(expected, TARGETS["onnx"], subnet / "export")
            made[number] = Exported(subnet, expected, place, certificate)
        return made[number]

    return export


def of_a_resnet(data: DataSet, place: Path) -> ReferenceLogits:
    """What a subnet of a small ResNet for grey images of 8 pixels in 3 classes gives; it is written to `place`."""
    settings = ResNetSettings.for_images(
        image_size=8, in_channels=1, num_classes=3, channels=(32, 64), strides=(1, 2), bottleneck=True
    )
    net = ResNet(settings, seed=0).eval()
    arch = net.space.sample(random.Random(1))
    write_subnet(place, net.extract(arch), describe_subnet(net, arch, data))
    return ReferenceLogits.of(read_reference(place, images=4))
