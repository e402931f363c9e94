"""What class balance trades: top-1 against mean recall and the rarest class's, on the validate images of a folder.

    python benchmarks/class_balance.py photos/trash [--balance 0 0.5 1] [--seeds 3] [--epochs 20] [--runs runs/balance]
        [--out docs/results/class-balance.jsonl]

Each training is `trainonce train FOLDER` as it is by default, at equal steps; a seed is that of the training and of the
division of the images. Scored are the smallest and the largest subnet, recalibrated. Runs that are there are gone on
with; every line says one subnet.
"""

import argparse
from pathlib import Path
from statistics import fmean

import torch

from common import machine
from trainonce import pipeline
from trainonce.records import append_line
from trainonce.run.directory import RunDirectory


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--balance", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--runs", type=Path, default=Path("runs/balance"))
    parser.add_argument("--out", type=Path, default=Path("class-balance.jsonl"))
    return parser.parse_args()


def main() -> None:
    """Train, score, record."""
    given = options()
    torch.set_num_threads(1)
    print(machine())
    for seed in range(given.seeds):
        for balance in given.balance:
            run = RunDirectory(given.runs / f"{seed}-{balance}")
            if run.config_file.exists():
                pipeline.train(resume=run.path, device="cpu")
            else:
                how = {"epochs": given.epochs, "class_balance": balance, "seed": seed, "split_seed": seed}
                pipeline.train(given.data, out=run.path, probes=0, device="cpu", **how)
            for arch in ("smallest", "largest"):
                found = pipeline.evaluate_subnet(run.path, arch, split="validate", device="cpu")
                counts, recall = found.per_class.counts(), found.per_class.recall
                rarest = min(range(len(counts)), key=lambda number: counts[number])
                line = {
                    "data": given.data.name,
                    "class_balance": balance,
                    "seed": seed,
                    "epochs": given.epochs,
                    "subnet": arch,
                    "images": found.score.images,
                    "top1": found.score.top1,
                    "mean_recall": fmean(value for value in recall if value is not None),
                    "rarest_images": counts[rarest],
                    "rarest_recall": recall[rarest],
                    "torch": torch.__version__,
                }
                append_line(given.out, line)
                print(line, flush=True)


if __name__ == "__main__":
    main()
