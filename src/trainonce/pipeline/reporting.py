"""What runs and studies came to, as a page that opens offline, or as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainonce.errors import UserError
from trainonce.evaluation.evaluator import SplitName
from trainonce.pipeline.evaluating import Buckets, centres_of
from trainonce.report.figures.charts import save_chart
from trainonce.report.figures.population import PopulationInfo, draw_population, population_info
from trainonce.report.loading import read_groups
from trainonce.report.page import write_report
from trainonce.run.directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Report:
    """A page that was written."""

    page: Path
    groups: tuple[str, ...]
    """The titles of what it shows: the runs beside each other, and each study."""


def report(
    *paths: str | Path,
    out: str | Path | None = None,
    split: SplitName | None = None,
    buckets: Buckets = (),
    bucket_half_width: float | None = None,
) -> Report:
    """Write one page that shows runs or studies, by their directories: `trainonce report`, whose options these are.

    The page is `out`, or in the directory given first: report.html for that directory, compared.html for several.
    A directory that is named twice is one. Raises `UserError` for what cannot be read or drawn.
    """
    places = _once(paths)
    if not places:
        raise UserError("name the directory of a run or of a study to report on")
    page = Path(out or places[0] / ("report.html" if len(places) == 1 else "compared.html"))
    if page.suffix != ".html":
        raise UserError(f"a page's name must end in .html, not {page.name!r}")
    groups = read_groups(places, split, centres_m=centres_of(buckets), half_m=bucket_half_width)
    write_report(groups, page)
    return Report(page=page, groups=tuple(group.title for group in groups))


def draw(
    *runs: str | Path,
    out: str | Path = "population.png",
    split: SplitName = "validate",
    buckets: Buckets = (),
    bucket_half_width: float | None = None,
) -> PopulationInfo:
    """Draw the evaluated populations of runs side by side into `out`, a .png, .svg or .pdf: `trainonce draw`.

    What the picture shows comes back. A run that is named twice is one. Raises `UserError` for what cannot be read or
    drawn.
    """
    places = [RunDirectory(run) for run in _once(runs)]
    info = population_info(places, split, centres_of(buckets), bucket_half_width)
    save_chart(draw_population(info), Path(out))
    return info


def _once(paths: Sequence[str | Path]) -> list[Path]:
    """Each directory once, however it is named, under the name it has first."""
    named: dict[Path, Path] = {}
    for path in map(Path, paths):
        named.setdefault(path.resolve(), path)
    return list(named.values())
