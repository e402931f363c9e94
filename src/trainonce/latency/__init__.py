"""What subnets take on the machine at hand: measured part by part into a table, which predicts and knows its error."""

from trainonce.latency.accuracy import PredictionError
from trainonce.latency.build import BuildSettings, TableCheck, build_table, check_table, table_seconds
from trainonce.latency.runtimes import RUNTIMES
from trainonce.latency.table import LatencyTable
from trainonce.latency.timing import time_ms

__all__ = [
    "RUNTIMES",
    "BuildSettings",
    "LatencyTable",
    "PredictionError",
    "TableCheck",
    "build_table",
    "check_table",
    "table_seconds",
    "time_ms",
]
