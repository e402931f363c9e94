"""Figures and the report: `*_info()` computes what a figure shows, `draw_*()` draws it with Altair.

    from trainonce import report
    info = report.population_info([RunDirectory("runs/demo")])
    report.save_chart(report.draw_population(info), Path("population.png"))

Altair is an extra, asked for only when something is drawn.
"""

from trainonce.report.figures.charts import save_chart, seed_mean
from trainonce.report.figures.exposure import draw_exposure, draw_selection, exposure_info
from trainonce.report.figures.interference import draw_forgetting, draw_interference, forgetting_info, interference_info
from trainonce.report.figures.population import draw_pareto, draw_population, population_info
from trainonce.report.figures.search import draw_search, search_info
from trainonce.report.figures.studies import (
    dose_info,
    draw_dose,
    draw_effects,
    draw_gaps,
    draw_seeds,
    effects_info,
    gap_info,
    seeds_info,
)
from trainonce.report.figures.training import curves_info, draw_curves, draw_times, times_info
from trainonce.report.loading import read_groups, read_run, read_study
from trainonce.report.page import build_page, write_report

__all__ = [
    "build_page",
    "curves_info",
    "dose_info",
    "draw_curves",
    "draw_dose",
    "draw_effects",
    "draw_exposure",
    "draw_forgetting",
    "draw_gaps",
    "draw_interference",
    "draw_pareto",
    "draw_population",
    "draw_search",
    "draw_seeds",
    "draw_selection",
    "draw_times",
    "effects_info",
    "exposure_info",
    "forgetting_info",
    "gap_info",
    "interference_info",
    "population_info",
    "read_groups",
    "read_run",
    "read_study",
    "save_chart",
    "search_info",
    "seed_mean",
    "seeds_info",
    "times_info",
    "write_report",
]
