"""`python -m tests.fuzzing --damages N --seed S`: damage files at random, read them, and count what comes of it."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tests.fuzzing.harness import FAULTS, OUTCOMES, Case, fuzz
from tests.fuzzing.kinds import KINDS
from tests.fuzzing.material import make

PACKAGES = ("torch", "numpy", "safetensors", "pydantic", "Pillow", "onnx", "onnxruntime")
SHOWN = 20
"""Faults of which the file says all; of the others only the counts."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--damages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first damage")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, help="of files of this kind alone (other damages than among all)")
    parser.add_argument("--out", type=Path, help="a JSON file for the counts")
    parser.add_argument("--material", type=Path, help="where to make, and find again, what is damaged")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {given.kind: KINDS[given.kind]} if given.kind else KINDS
    with TemporaryDirectory() as scratch:
        material = given.material or Path(scratch, "material")
        if not material.exists():
            material.mkdir(parents=True)
            print("making what is damaged", file=sys.stderr)
            make(material)
        began = time.monotonic()
        numbers = range(given.first, given.first + given.damages)
        counted = count(fuzz(material, seed=given.seed, numbers=numbers, workers=given.workers, kinds=kinds))
        seconds = time.monotonic() - began
    found = {
        "command": f"python -m tests.fuzzing {' '.join(sys.argv[1:])}",
        "seed": given.seed,
        "first": given.first,
        "damages": given.damages,
        "faults": sum(counted["totals"].get(name, 0) for name in FAULTS),
        **counted,
        "outcomes": OUTCOMES,
        "seconds": round(seconds),
        **_machine(),
    }
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    if given.out:
        given.out.write_text(text)
    else:
        print(text)
    print(f"{found['faults']} of {given.damages} damages were believed, crashed or hung", file=sys.stderr)
    return int(found["faults"] > 0)


def count(cases: Iterable[Case]) -> dict[str, Any]:
    """Outcomes, in all, by kind of file, and by what was done to it; and the first faults in full."""
    totals: Counter[str] = Counter()
    by_kind: dict[str, Counter[str]] = {}
    by_how: dict[str, Counter[str]] = {}
    faults: list[dict[str, Any]] = []
    for done, case in enumerate(cases, start=1):
        totals[case.outcome] += 1
        by_kind.setdefault(case.kind, Counter())[case.outcome] += 1
        by_how.setdefault(case.how, Counter())[case.outcome] += 1
        if case.outcome in FAULTS and len(faults) < SHOWN:
            faults.append(vars(case))
        if done % 5000 == 0:
            print(f"{done}: {dict(totals)}", file=sys.stderr)
    return {
        "totals": _ordered(totals),
        "by_kind": {kind: _ordered(by_kind[kind]) for kind in sorted(by_kind)},
        "by_damage": {how: _ordered(by_how[how]) for how in sorted(by_how)},
        "first_faults": faults,
    }


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in OUTCOMES if counts[name]}


def _machine() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


if __name__ == "__main__":
    sys.exit(main())
