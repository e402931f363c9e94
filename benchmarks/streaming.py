"""Memory and speed of streaming an image folder, against holding it in memory.

    python benchmarks/streaming.py [--sizes 2000 5000 20000] [--side 160] [--steps 15]

Makes folders of JPEG images, trains a narrow supernet on each for some steps in a process of its own, and prints the
peak memory of that process and its workers, which must not grow with the folder when streaming. Then it prints how
many images 0, 1 and 2 workers decode in a second. Memory is PSS: pages that processes share are counted once.
"""

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from trainonce import RECIPES, MobileNetV3, MobileNetV3Settings, RunDirectory, load_dataset, train_supernet

CLASSES = 10
BATCH = 64
DIFFERENT = 200  # images; a folder repeats them under other names
SAMPLE_EVERY_S = 0.05


def make_folder(root: Path, images: int, side: int) -> int:
    """Write a folder of smooth noisy JPEG images; gives the mean bytes of one."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(DIFFERENT):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(noisy).save(encoded, format="JPEG", quality=85)
        files.append(encoded.getvalue())
    for i in range(images):
        folder = root / f"class{i % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:07}.jpg").write_bytes(files[i % DIFFERENT])
    return sum(map(len, files)) // DIFFERENT


def train(folder: str, side: int, steps: int, stream: bool, workers: int) -> None:
    """What the measured process does; prints the seconds of loading and of the steps as JSON."""
    torch.set_num_threads(1)
    began = time.monotonic()
    data = load_dataset(folder, image_size=side, stream=stream, workers=workers)
    loaded = time.monotonic()
    settings = MobileNetV3Settings.for_images(
        image_size=side, in_channels=3, num_classes=CLASSES, geometry="paper", width_mult=0.25
    )
    recipe = RECIPES["rss"].with_batch_size(BATCH)
    recipe = recipe.scaled(steps / (len(data.train) // BATCH) / recipe.epochs)
    with tempfile.TemporaryDirectory() as run:
        train_supernet(MobileNetV3(settings, seed=0), recipe, data, RunDirectory(run))
    print(json.dumps({"load_s": loaded - began, "train_s": time.monotonic() - loaded}))


def pss_bytes(process: int) -> dict[int, int]:
    """The proportional set size of a process and of all below it, by id."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {process}
    for _ in range(4):  # parent, server, workers
        family |= {child for child, parent in parents.items() if parent in family}
    found = {}
    for member in family:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found[member] = sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found


def measure_training(folder: Path, side: int, steps: int, *, stream: bool, workers: int) -> tuple[float, float, str]:
    """The peak PSS in bytes of the training process, and of it and all below it together; and what it printed."""
    arguments = [sys.executable, __file__, "--train", str(folder), str(side), str(steps), str(stream), str(workers)]
    own, together = 0, 0
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            found = pss_bytes(process.pid)
            own = max(own, found.get(process.pid, 0))
            together = max(together, sum(found.values()))
            time.sleep(SAMPLE_EVERY_S)
        assert process.stdout is not None
        printed = process.stdout.read()
    assert process.returncode == 0
    return own, together, printed


def measure_decoding(folder: Path, side: int, workers: int, *, rounds: int) -> list[float]:
    """Images decoded in a second, in each of some rounds over at most 32 batches, without training."""
    split = load_dataset(str(folder), image_size=side, stream=True, workers=workers).train
    rates = []
    for turn in range(rounds):
        shuffled = torch.randperm(len(split), generator=torch.Generator().manual_seed(turn))
        batches = split.batches(torch.split(shuffled[: 33 * BATCH], BATCH))
        next(batches)  # the workers have started
        began = time.monotonic()
        images = sum(len(batch.rows_B) for batch in batches)
        rates.append(images / (time.monotonic() - began))
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 5000, 20_000], help="images in a folder")
    parser.add_argument("--side", type=int, default=160, help="pixels")
    parser.add_argument("--steps", type=int, default=15, help="training steps of 64 images")
    parser.add_argument("--rounds", type=int, default=5, help="of measuring speed")
    parser.add_argument("--train", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        folder, side, steps, stream, workers = options.train
        train(folder, int(side), int(steps), stream == "True", int(workers))
        return
    print(
        f"torch {torch.__version__}, Pillow {PIL.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        print(f"\n{options.steps} steps of {BATCH} images of {options.side} pixels, one thread; peak PSS in MB")
        print(f"{'images':>7} {'way':>16} {'parent':>7} {'all':>7} {'load s':>7} {'train s':>8}")
        for size in options.sizes:
            folder = Path(scratch) / str(size)
            mean_bytes = make_folder(folder, size, options.side)
            for stream, workers in ((True, 2), (True, 0), (False, 0)):
                own, together, printed = measure_training(
                    folder, options.side, options.steps, stream=stream, workers=workers
                )
                took = json.loads(printed)
                way = f"stream, {workers} workers" if stream else "memory"
                print(
                    f"{size:>7} {way:>16} {own / 1e6:>7.0f} {together / 1e6:>7.0f} "
                    f"{took['load_s']:>7.1f} {took['train_s']:>8.1f}"
                )
        print(f"\ndecoding alone, files of {mean_bytes / 1e3:.1f} kB in the page cache, {options.rounds} rounds")
        print(f"{'workers':>7} {'images/s':>9} {'from':>6} {'to':>6} {'ms/image':>9}")
        for workers in (0, 1, 2):
            rates = measure_decoding(folder, options.side, workers, rounds=options.rounds)
            middle = statistics.median(rates)
            print(f"{workers:>7} {middle:>9.0f} {min(rates):>6.0f} {max(rates):>6.0f} {1000 / middle:>9.2f}")


if __name__ == "__main__":
    main()
