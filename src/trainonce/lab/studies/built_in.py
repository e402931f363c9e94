"""The table of built-in studies, and the conclusion of any study. A study of ours is added here and nowhere else."""

from collections.abc import Sequence

from trainonce.lab.studies.baseline import BASELINE
from trainonce.lab.studies.comparing_arms import conclude_arms
from trainonce.lab.studies.conclusion import Conclusion
from trainonce.lab.studies.dose import DOSE
from trainonce.lab.studies.factorial import FACTORIAL
from trainonce.lab.studies.geometry import GEOMETRY
from trainonce.lab.studies.results import FinishedRun, RecordedStudy, StudyResult
from trainonce.lab.studies.solo import SOLO
from trainonce.lab.studies.tuning import TUNING

STUDIES = {design.name: design for design in (TUNING, BASELINE, DOSE, SOLO, FACTORIAL, GEOMETRY)}
"""Every built-in study by name."""


def conclude(study: RecordedStudy, results: Sequence[StudyResult], times: Sequence[FinishedRun]) -> Conclusion:
    """The conclusion of a study of ours by its design; of any other, every arm against the first."""
    concluding = STUDIES[study.built_in].conclude if study.built_in in STUDIES else conclude_arms
    return concluding(study, results, times)
