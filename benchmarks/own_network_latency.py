"""How well a latency table of one's own network predicts: docs/latency.md's figures.

    python benchmarks/own_network_latency.py timm:resnet18 timm:mobilenetv3_small_100 --image-size 96

For each network: seconds of CPU that its table takes, tracing aside, its error on random subnets that it was not made
from, and the error of the same measured twice. Times are those of the thread on its processor, so that other work on
the machine disturbs them less than the clock on the wall, by which `trainonce latency build` measures.
"""

import argparse
import json
import time
from functools import partial

import torch

from trainonce.latency import BuildSettings, build_table, time_ms
from trainonce.models.traced import elastic, network_named


def measured(name: str, image_size: int, settings: BuildSettings, *, stages: bool) -> dict[str, object]:
    """A network's line."""
    net = elastic(network_named(name).network.eval(), torch.zeros(1, 3, image_size, image_size), stages=stages)
    began = time.process_time()
    table = build_table(net, settings, timer=partial(time_ms, clock=time.thread_time))
    return {
        "network": name,
        "image_size": image_size,
        "stages": stages,
        "runtime": settings.runtime,
        "subnets": settings.networks,
        "parts": len(table.parts),
        "cpu_seconds": round(time.process_time() - began),
        "drift": [round(pace, 3) for pace in table.drift],
        "table": str(table.error),
        "twice": str(table.repeat),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="as `trainonce train --model` takes them")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--quick", action="store_true", help="as `trainonce latency build --quick`")
    given = parser.parse_args()
    make = BuildSettings.quick if given.quick else BuildSettings
    for name in given.networks:
        line = measured(name, given.image_size, make(runtime=given.runtime), stages=given.stages)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
