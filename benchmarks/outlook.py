"""Would more time help? What twice the epochs give, beside what a training says of itself when it ends.

    python benchmarks/outlook.py [SET …] [--epochs 4 8 16 32 64] [--seed 0] [--train-images 3000] [--out outlook.jsonl]

Each SET is trained by `quick` in `light` for each number of epochs. A row has the training images classified
correctly at the end (as they are varied, of the subnets in training), the mean of the probes on validate, and how many
points more the probes have with twice the epochs: what `trainonce.pipeline.outlook.outlook` should tell beforehand
from the first two. The test split is not read. Run again it does what is missing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import torch

from common import machine
from trainonce import pipeline
from trainonce.data import DataSet
from trainonce.pipeline.outlook import learned, outlook
from trainonce.records import append_line, read_lines
from worth import loaded


@dataclass(frozen=True)
class Ended:
    """How a training ended, in percent."""

    data: str
    images: int
    epochs: float
    seed: int
    train: float
    validate: float


def ended(name: str, data: DataSet, epochs: float, seed: int) -> Ended:
    """Train and say how it ended."""
    looks: list[Sequence[float]] = []
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        done = pipeline.train(
            data, recipe="quick", geometry="light", epochs=epochs, seed=seed, out=out, on_look=looks.append
        )
        train = learned(done.plan.run.metrics())
    return Ended(name, len(data.train), epochs, seed, train, fmean(looks[-1]))


def table(found: list[Ended]) -> str:
    """A row for each training of which there is one twice as long, by how far it learned its images."""
    by_length = {(one.data, one.images, one.seed, one.epochs): one for one in found}
    lines = ["| set | epochs | train | validate | twice the epochs give | said |", "|---|---|---|---|---|---|"]
    for one in sorted(found, key=lambda one: one.train):
        twice = by_length.get((one.data, one.images, one.seed, 2 * one.epochs))
        if twice is not None:
            said = outlook(one.train, one.validate).split(":")[0]
            gain = twice.validate - one.validate
            row = f"{one.data} | {one.epochs:g} | {one.train:.1f} | {one.validate:.1f} | {gain:+.1f} | {said}"
            lines.append(f"| {row} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", default=[])
    parser.add_argument("--epochs", type=float, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-images", type=int, default=3000, help="at most")
    parser.add_argument("--out", type=Path, default=Path("outlook.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    found = [Ended(**line) for line in read_lines(asked.out)]
    for name_or_path in asked.sets:
        name, data = loaded(name_or_path, asked.train_images)
        for epochs in asked.epochs:
            made_of = name, len(data.train), epochs, asked.seed
            if made_of not in {(one.data, one.images, one.epochs, one.seed) for one in found}:
                found.append(ended(name, data, epochs, asked.seed))
                append_line(asked.out, asdict(found[-1]))
                print(found[-1], flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
