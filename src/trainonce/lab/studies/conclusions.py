"""From a study's lines to what they force: one pure function for each built-in study.

Each takes study.json, the lines of results.jsonl and those of times.jsonl as plain dicts. Lines may be missing, as when
a study was stopped: then less can be told. Designs and measures: docs/statistics.md.
"""

from collections.abc import Callable, Mapping, Sequence

from trainonce.lab.studies.conclude_factorial import conclude_factorial
from trainonce.lab.studies.conclude_probes import conclude_dose, conclude_solo
from trainonce.lab.studies.conclude_strategies import (
    conclude_arms,
    conclude_baseline,
    conclude_geometry,
    conclude_tuning,
)
from trainonce.lab.studies.conclusion import Conclusion, Line, Study

CONCLUSIONS: Mapping[str, Callable[[Study, Sequence[Line], Sequence[Line]], Conclusion]] = {
    "tuning": conclude_tuning,
    "baseline": conclude_baseline,
    "dose": conclude_dose,
    "solo": conclude_solo,
    "factorial": conclude_factorial,
    "geometry": conclude_geometry,
}


def conclude(study: Study, results: Sequence[Line], times: Sequence[Line]) -> Conclusion:
    """The conclusion of a study of ours by its design; of any other, every arm against the first.

    A `study.json` from before designs were recorded has no such key; its name stands for it.
    """
    design = study["design"] if "design" in study else study["name"]
    return CONCLUSIONS.get(design, conclude_arms)(study, results, times)
