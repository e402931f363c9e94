"""What files and the arena of TFLite Micro are predicted to take, against files that are written and planned.

    python benchmarks/footprint.py [--subnets 12] [--seed 1]

For a supernet of MobileNetV3 (geometry `light`) and one of ResNet, both for CIFAR-10 and with random weights, as many
random subnets each, every layer in int8. Needs the extras onnx, openvino, litert and tflite-micro; about five seconds a
subnet.
"""

import argparse
from collections import defaultdict
from typing import Any

import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from common import machine
from trainonce.cost.memory import BYTES_PER_VALUE, model_size, peak_memory
from trainonce.export.description import FileDescription, Precision
from trainonce.export.int8 import quantise
from trainonce.export.litert import litert_file
from trainonce.export.onnx import to_onnx
from trainonce.export.openvino import write_openvino
from trainonce.export.tflite import graph_of
from trainonce.export.tflite_micro import arena_of
from trainonce.latency.parts import sized_network
from trainonce.latency.runtimes import RANGE, with_random_weights
from trainonce.models import MobileNetV3, MobileNetV3Settings, ResNet, ResNetSettings, Supernet
from trainonce.nn.kinds import PlainSpec, written
from trainonce.search.footprint import file_bytes, ram_bytes
from trainonce.space import derived_rng
from trainonce.subnets.description import Preprocessing
from trainonce.tflite.file import to_tflite
from trainonce.tflite.int8 import in_int8

SIDE, CLASSES = 32, ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def main() -> None:
    """Print the errors of each family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subnets", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(machine())
    for name, net in supernets().items():
        rng = derived_rng(asked.seed, "footprint")
        found = defaultdict(list)
        for _ in range(asked.subnets):
            arch = net.space.sample(rng)
            for what, (said, before, took) in compared(str(arch), net.describe(arch)).items():
                found[what].append((said / took - 1, before / took - 1, took))
        for what, rows in found.items():
            errors, earlier, sizes = zip(*rows, strict=True)
            print(
                f"{name}, {what}: {min(sizes) / 1e3:.0f} to {max(sizes) / 1e3:.0f} KB; mean error {_mean(errors):.2%}, "
                f"worst {max(errors, key=abs):+.2%}; by weights and activations alone {_mean(earlier):.1%}, "
                f"{max(earlier, key=abs):+.1%}"
            )


def supernets() -> dict[str, Supernet]:
    """The two, by name."""
    images: dict[str, Any] = {"image_size": SIDE, "resolutions": (SIDE,), "in_channels": 3, "num_classes": len(CLASSES)}
    return {
        "MobileNetV3": MobileNetV3(MobileNetV3Settings.for_images(**images, geometry="light"), seed=0),
        "ResNet": ResNet(ResNetSettings.for_images(**images, geometry="light"), seed=0),
    }


def compared(arch: str, spec: PlainSpec) -> dict[str, tuple[int, int, int]]:
    """For each figure what is predicted, what the weights and the activations alone take, and what it is, in bytes."""
    network = with_random_weights(sized_network(spec))
    _vary(network)
    description = FileDescription(
        architecture=arch,
        classes=CLASSES,
        preprocessing=Preprocessing(resolution=SIDE, channels=3, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26)),
        network=written(spec),
        weights_sha256="0" * 64,
    )
    content = to_onnx(network, description)
    graph, description = graph_of(content)
    ranges = dict.fromkeys([graph.given, *(node.output for node in graph.nodes)], RANGE)
    micro = to_tflite(in_int8(graph, ranges, in_float=lambda _: False, ends="INT8"), schema, named=False)
    litert = litert_file(in_int8(graph, ranges, in_float=lambda _: False), graph, description, "int8")
    onnx = quantise(content, [torch.randn(2, 3, SIDE, SIDE)], in_float32=lambda _: False)
    files = {"tflite-micro": [micro], "litert-int8": [litert], "onnx-int8": [onnx]}
    for name, content_of in (("openvino-int8", onnx), ("openvino", content)):
        files[name] = list(write_openvino(content_of).files.values())
    live, sizes = peak_memory(spec, bytes_per_value=1), {}
    for target, parts in files.items():
        numbers: Precision = "float32" if target == "openvino" else "int8"
        weights = model_size(spec, bytes_per_value=BYTES_PER_VALUE[numbers])
        sizes[f"{target}, file"] = file_bytes(spec, numbers=numbers, target=target), weights, sum(map(len, parts))
    return {"arena": (ram_bytes(spec, numbers="int8", target="tflite-micro"), live, arena_of(micro)), **sizes}


def _vary(network: nn.Module) -> None:
    """Give each channel numbers of its own: equal ones are written once, which a trained network never has."""
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=numbers) + 0.5)


def _mean(errors: tuple[float, ...]) -> float:
    return sum(abs(error) for error in errors) / len(errors)


if __name__ == "__main__":
    main()
