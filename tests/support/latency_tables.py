"""A latency table whose times are given, for tests that need one and measure nothing."""

import json
from collections.abc import Mapping

from trainonce.latency import LatencyTable, PredictionError
from trainonce.latency.table import PartTime


def table_with(times: Mapping[str, float]) -> LatencyTable:
    """A table in which parts take these milliseconds, by the names that `part_names` gives them."""
    faultless = PredictionError.of([1.0, 2.0], [1.0, 2.0])
    return LatencyTable(
        runtime="torch",
        threads=1,
        batch=1,
        resolutions=(8,),
        machine={},
        versions={},
        made="2026-01-01T00:00:00+00:00",
        settings={},
        drift=(1.0, 1.0),
        error=faultless,
        repeat=faultless,
        parts=tuple(PartTime(part=json.loads(name), ms=ms, alone_ms=ms) for name, ms in times.items()),
    )
