"""How well latency tables predict: for each runtime a table of this machine, its error, and a later check of it.

    python benchmarks/latency.py RUN [--runtimes onnxruntime,torch,openvino] [--threads 1] [--quick]

Takes some minutes for each runtime, on a machine that should do nothing else. Held out are random subnets that the
table was not made from, each measured twice; "repeat" is how well the first measurement predicts the second. The check
measures others, after all tables were made, and takes no drift out.
"""

import argparse
import time
from pathlib import Path

from common import machine
from trainonce.latency import RUNTIMES, BuildSettings, LatencyTable, PredictionError, build_table, check_table
from trainonce.latency.runtimes import versions_of
from trainonce.models import Supernet
from trainonce.run.directory import RunDirectory


def line(runtime: str, what: str, error: PredictionError, note: str = "") -> None:
    """Print one row."""
    ranks = "-" if error.spearman is None else f"{error.spearman:.4f} / {error.kendall:.3f}"
    print(
        f"{runtime:>12} {what:>9} {error.networks:>8} {error.fastest_ms:>8.3f} {error.slowest_ms:>8.3f} "
        f"{100 * error.mean:>7.2f} {100 * error.worst:>7.2f} {ranks:>15} {error.factor:>7.3f} "
        f"{100 * error.scaled_mean:>7.2f}  {note}"
    )


def made(net: Supernet, runtime: str, threads: int, quick: bool) -> LatencyTable:
    """A table, its row, and how long it took."""
    make = BuildSettings.quick if quick else BuildSettings
    began = time.perf_counter()
    table = build_table(net, make(runtime=runtime, threads=threads))
    slow, fast = table.drift
    line(runtime, "held out", table.error, f"{time.perf_counter() - began:.0f} s; pace {fast:.3f} to {slow:.3f}")
    line(runtime, "repeat", table.repeat)
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--runtimes", default=",".join(RUNTIMES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    runtimes = options.runtimes.split(",")
    print(machine())
    print("; ".join(f"{name}: {versions_of(name)}" for name in runtimes))
    net = RunDirectory(options.run).build_supernet()
    print(
        f"{'runtime':>12} {'subnets':>9} {'number':>8} {'from ms':>8} {'to ms':>8} {'mean %':>7} {'worst %':>7} "
        f"{'Spearman / tau':>15} {'factor':>7} {'then %':>7}"
    )
    tables = [made(net, runtime, options.threads, options.quick) for runtime in runtimes]
    for table in tables:
        line(table.runtime, "check", check_table(table, net).error)


if __name__ == "__main__":
    main()
