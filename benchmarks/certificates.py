"""Certificates of many random subnets of a run: how far supernet, extracted network and exported files are apart.

    python benchmarks/certificates.py RUN [--out certificates.jsonl] [--test-images 1000]
        [--count onnx=50 --count openvino=3 --count executorch=3 --count torch=3 --count onnx-int8=1]

Draws the same subnets each time, recalibrates them, exports them into a temporary folder and certifies them on 64
random images and some of the test split (0: all of it). One line for each certificate goes into the file as soon as it
is there; run again, it does what is missing for the same weights of the supernet. It ends with a table of the
certificates of these weights, and with exit code 1 if one did not pass.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import machine
from trainonce.data import DataSet
from trainonce.errors import RunError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.export import TARGETS
from trainonce.export.certificate import FILE as CERTIFICATE
from trainonce.export.certificate import ReferenceLogits
from trainonce.export.exporting import export_subnet
from trainonce.export.reference import read_reference
from trainonce.export.tools import weights_sha256
from trainonce.models import Supernet
from trainonce.records import append_line, read_json, read_lines
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture, derived_rng
from trainonce.subnets import describe_subnet, write_subnet

DEFAULT = ("onnx=50", "openvino=3", "executorch=3", "torch=3", "onnx-int8=1")
KEPT = ("target", "passed", "verdict", "architecture", "supernet_and_extracted", "extracted_and_exported")
KEPT_TOO = ("weights_sha256", "top1", "files", "float32_bytes", "latency_ms", "first_difference", "details", "images")


def main() -> int:
    """Do what is missing, print the table; 1 where a certificate did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("certificates.jsonl"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--count", action="append", metavar="TARGET=N", help=f"default: {' '.join(DEFAULT)}")
    asked = parser.parse_args()
    counts = {name: int(n) for name, _, n in (text.partition("=") for text in asked.count or DEFAULT)}
    run = RunDirectory(asked.run)
    net, step = run.load_supernet()
    data = run.load_data(asked.data_dir)
    evaluator = Evaluator(data, "validate", EvaluateSettings())
    scored = data
    if asked.test_images:
        scored = dataclasses.replace(data, test=data.test.drawn(asked.test_images, seed=0))
    rng = derived_rng(0, "certificates")
    print(machine())
    supernet = weights_sha256(net)  # not the subnet's: that costs a calibration, and threads may round it otherwise
    for number in range(max(counts.values())):
        arch = net.space.sample(rng)
        done = {(line["architecture"], line["target"]) for line in lines_of(supernet, asked.out)}
        targets = [name for name, n in counts.items() if number < n and (str(arch), name) not in done]
        if targets:
            for line in certified(net, step, arch, evaluator, scored, run, targets):
                append_line(asked.out, line | {"supernet_sha256": supernet})
                print(f"{number}: {line['target']}: {line['verdict']} ({line['seconds']:.0f} s)", flush=True)
    return summarise(lines_of(supernet, asked.out))


def lines_of(supernet: str, path: Path) -> list[dict[str, Any]]:
    """The lines in a file that are of the supernet whose weights have this hash."""
    return [line for line in read_lines(path) if line.get("supernet_sha256") == supernet]


def certified(
    net: Supernet,
    step: int,
    arch: Architecture,
    evaluator: Evaluator,
    scored: DataSet,
    run: RunDirectory,
    targets: Sequence[str],
) -> list[dict[str, Any]]:
    """A line for each target of one subnet."""
    lines = []
    with TemporaryDirectory() as folder:
        subnet = Path(folder) / "subnet"
        description = describe_subnet(net, arch, evaluator.data) | {"scores": {}, "trained": {"step": step}}
        write_subnet(subnet, evaluator.recalibrated(net, arch), description)
        reference = read_reference(subnet, run=run.path, loaded=scored)
        if reference.supernet is None:
            raise RunError(reference.no_supernet)
        expected = ReferenceLogits.of(reference)
        for name in targets:
            began = time.monotonic()
            try:
                place, _ = export_subnet(expected, TARGETS[name], Path(folder) / "out")
            except RunError:
                place = Path(folder) / "out" / f"{name}.failed"
            said = read_json(place / CERTIFICATE)
            lines.append({key: said[key] for key in (*KEPT, *KEPT_TOO)} | {"seconds": time.monotonic() - began})
    return lines


def summarise(lines: Sequence[dict[str, Any]]) -> int:
    """Print what the certificates of each target came to; 1 where one did not pass."""
    print(f"{'target':12} passed   same as supernet   largest difference   of logits up to   of allowed   other top-1")
    for name in TARGETS:
        of_target = [line for line in lines if line["target"] == name]
        if not of_target:
            continue
        below = [line["extracted_and_exported"] for line in of_target]
        to_the_bit = sum(line["supernet_and_extracted"]["identical"] for line in of_target)
        print(
            f"{name:12} {sum(line['passed'] for line in of_target):>3} of {len(of_target):<3}"
            f"{to_the_bit:>8} to the bit"
            f"{largest(below, 'largest_difference'):>17.2g}{largest(below, 'largest_logit'):>18.3g}"
            f"{largest(below, 'largest_ratio'):>13.2g}"
            f"{sum(b['unequal_top1'] for b in below):>9} of {sum(b['images'] for b in below)}"
        )
    return 0 if all(line["passed"] for line in lines) else 1


def largest(comparisons: Sequence[dict[str, Any]], key: str) -> float:
    """The largest of a figure, infinity where one is not a number."""
    return max(float("inf") if found[key] is None else float(found[key]) for found in comparisons)


if __name__ == "__main__":
    sys.exit(main())
