"""The table of built-in studies, and the conclusion of any study. A study of ours is added here and nowhere else."""

from collections.abc import Sequence

from trainonce.lab.studies.baseline import BASELINE
from trainonce.lab.studies.comparing_arms import conclude_arms
from trainonce.lab.studies.conclusion import Conclusion, Line, Study
from trainonce.lab.studies.dose import DOSE
from trainonce.lab.studies.factorial import FACTORIAL
from trainonce.lab.studies.geometry import GEOMETRY
from trainonce.lab.studies.solo import SOLO
from trainonce.lab.studies.tuning import TUNING

STUDIES = {design.name: design for design in (TUNING, BASELINE, DOSE, SOLO, FACTORIAL, GEOMETRY)}
"""Every built-in study by name."""


def conclude(study: Study, results: Sequence[Line], times: Sequence[Line]) -> Conclusion:
    """The conclusion of a study of ours by its design; of any other, every arm against the first.

    A `study.json` from before designs were recorded has no such key; its name stands for it.
    """
    design = study["design"] if "design" in study else study["name"]
    return (
        STUDIES[design].conclude(study, results, times) if design in STUDIES else conclude_arms(study, results, times)
    )
