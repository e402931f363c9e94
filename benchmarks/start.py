"""How long the command line takes to start, against an empty Python program, one after the other in turns.

    python benchmarks/start.py [--rounds 5]

Each is a process of its own, with its modules in the file cache. What is timed is the wall clock, of which whatever
else the machine does takes its share.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from common import machine

SHOWN = {
    "trainonce --help": (["-m", "trainonce", "--help"], {}),
    "trainonce --version": (["-m", "trainonce", "--version"], {}),
    "trainonce list": (["-m", "trainonce", "list"], {}),
    "completing trainonce train --k": (
        ["-c", "import sys; sys.argv[0] = 'trainonce'; from trainonce.__main__ import main; main()"],
        {"_TRAINONCE_COMPLETE": "complete_bash", "COMP_WORDS": "trainonce train --k", "COMP_CWORD": "2"},
    ),
    "import torch": (["-c", "import torch"], {}),
}
"""What Python is called with, and its environment."""


def seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """Seconds that a process of Python takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=os.environ | environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(machine())
    empty: tuple[list[str], dict[str, str]] = (["-c", "pass"], {})
    times: dict[str, list[float]] = {name: [] for name in SHOWN}
    ratios: dict[str, list[float]] = {name: [] for name in SHOWN}
    for turn in range(rounds + 1):
        for name, asked in SHOWN.items():
            nothing, took = seconds(*empty), seconds(*asked)
            if turn:  # the first fills the file cache
                times[name].append(took)
                ratios[name].append(took / nothing)
    for name in SHOWN:
        low, middle, high = min(ratios[name]), statistics.median(ratios[name]), max(ratios[name])
        took = statistics.median(times[name])
        print(f"{name}: {took:.2f} s, {middle:.0f} ({low:.0f} to {high:.0f}) times python -c pass")


if __name__ == "__main__":
    main()
