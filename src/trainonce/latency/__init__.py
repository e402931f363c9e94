"""What subnets take on the machine at hand: measured part by part into a table, which predicts and knows its error."""

from trainonce.latency.accuracy import PredictionError
from trainonce.latency.bench import time_and_drift, time_ms, was_quiet
from trainonce.latency.build import BuildSettings, TableCheck, build_table, check_table, table_seconds
from trainonce.latency.packing import pack_bench, unpack_table
from trainonce.latency.runtimes import RUNTIMES
from trainonce.latency.table import LatencyTable

__all__ = [
    "RUNTIMES",
    "BuildSettings",
    "LatencyTable",
    "PredictionError",
    "TableCheck",
    "build_table",
    "check_table",
    "pack_bench",
    "table_seconds",
    "time_and_drift",
    "time_ms",
    "unpack_table",
    "was_quiet",
]
