"""Search against random search at equal numbers of true scores, on a trained run, over several seeds.

    python benchmarks/search.py RUN --max-macs 8M [--scores 60] [--seeds 5] [--test] [--out search.json]

Each seed's search starts from no recorded score, and so do its two controls: random subnets within the limit whose
choices are uniform (most lie near the limit, which is best for the best subnet under it); and `both`, what `trainonce
search` has as its control and begins with itself: by turns those and some within a limit that is itself drawn, for the
rest of the front. Compared are the best top-1 within the limit on the validation images, by which it was chosen; with
`--test` that subnet's top-1 on the test images, which nothing was chosen by; and the hypervolume of top-1 against MACs,
in percent of the box of what both sides saw: against `both` alone, since uniform draws do not look for a front.
Differences are paired by seed (`docs/statistics.md`).

Works on a copy of RUN in a temporary folder, or in `--work DIR`, where scores are kept: killed and run again it
goes on.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from common import machine
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.lab.statistics import compare
from trainonce.models import Supernet
from trainonce.run.directory import RunDirectory
from trainonce.search import (
    Limit,
    Problem,
    ScoreCache,
    SearchSettings,
    SearchStart,
    feasible_subnet,
    quantity,
    resource_named,
    search,
    search_result,
)
from trainonce.search.draws import FeasibleDraws, Spread
from trainonce.space import derived_rng

CONTROLS: tuple[Spread, ...] = ("uniform", "both")


class Bench:
    """A run's cache of true scores, on validate and on test."""

    def __init__(self, run: RunDirectory, net: Supernet, step: int, settings: EvaluateSettings, data_dir: Path | None):
        data = run.load_data(data_dir)
        nothing = SearchStart(name="benchmark", knew=(0, 0), scores={})
        self.cache = ScoreCache(run, net, step, Evaluator(data, "validate", settings), nothing)
        self.examiner = ScoreCache(run, net, step, Evaluator(data, "test", settings), nothing)

    def one_seed(self, problem: Problem, settings: SearchSettings, *, test: bool) -> dict[str, Any]:
        """The values of a search and of its controls."""
        began = time.monotonic()
        evaluated = search(problem, {}, self.cache, settings)
        row: dict[str, Any] = {"seed": settings.seed, "seconds": round(time.monotonic() - began, 1)}
        row["evaluations"] = {"search": len(evaluated.scores)}
        row["predictor_used"] = [one.predictor is not None and one.predictor.used for one in evaluated.rounds]
        row["held_out"] = [
            None if one.predictor is None or one.predictor.held_out is None else one.predictor.held_out.to_json()
            for one in evaluated.rounds
        ]
        row["finalists"] = None if evaluated.finalists is None else evaluated.finalists.to_json()
        row["best"], row["hypervolume"], row["test"] = {}, {}, {}
        for spread in CONTROLS:
            rng = derived_rng(settings.seed, "benchmark", spread)
            draws = FeasibleDraws(problem, feasible_subnet(problem), rng, spread=spread)
            control = self.cache(draws.draw(len(evaluated.scores), ()))
            row["evaluations"][spread] = len(control)
            result = search_result(problem, {}, replace(evaluated, control=control))
            assert result.control is not None
            sides = (result.search, result.control)
            row["best"][spread] = [side.best.top1 for side in sides]
            if spread == "both":
                row["hypervolume"][spread] = [100 * side.hypervolume for side in sides]
            if test:
                archs = [side.best.arch for side in sides]
                row["test"][spread] = [self.examiner([arch])[arch] for arch in archs]
        return row


def compared(rows: list[dict[str, Any]], *, test: bool) -> dict[str, Any]:
    """Search minus each control, paired by seed."""
    found: dict[str, Any] = {}
    for spread in CONTROLS:
        for what in ("best", *["test"] * test, *["hypervolume"] * (spread == "both")):
            ours, theirs = ({row["seed"]: [row[what][spread][i]] for row in rows} for i in (0, 1))
            found[f"{what}, {spread}"] = asdict(compare(ours, theirs, names=("search", f"random search ({spread})")))
    return found


def main() -> None:
    """Search, print a table and the paired differences, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--max-macs", required=True, help="the budget, such as 8M")
    parser.add_argument("--scores", type=int, default=60, help="true scores of each side and seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--calibration-images", type=int, default=2000)
    parser.add_argument("--population", type=int, default=50, help="subnets in a generation")
    parser.add_argument("--generations", type=int, default=20, help="generations on predicted top-1 in a round")
    parser.add_argument("--test", action="store_true", help="score what was chosen on the test split too")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--work", type=Path, help="where the copy of the run is kept, with its scores")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="trainonce-search-"))
    if not (work / "run.json").exists():
        shutil.copytree(options.run, work, dirs_exist_ok=True)
    run = RunDirectory(work)
    net, step = run.load_supernet()
    macs = resource_named("macs", net)
    limit = Limit(resource=macs, most=quantity("macs", options.max_macs))
    problem = Problem(cost=net.cost, limits=(limit,), minimised=(macs,))
    calibration = EvaluateSettings(calibration_images=options.calibration_images)
    bench = Bench(run, net, step, calibration, options.data_dir)
    print(
        f"{machine()}\n{options.run}, {limit}, {options.scores} true scores a side, {torch.get_num_threads()} threads\n"
    )
    print(f"{'seed':>4} {'search':>8} {'uniform':>8} {'both':>8}   hypervolume: search, both")
    rows = []
    for seed in range(options.seeds):
        settings = SearchSettings(
            scores=options.scores,
            population=options.population,
            generations=options.generations,
            control=False,
            seed=seed,
        )
        row = bench.one_seed(problem, settings, test=options.test)
        rows.append(row)
        volumes = "{:.1f}, {:.1f}".format(*row["hypervolume"]["both"])
        tops = [row["best"]["uniform"][0], *(row["best"][spread][1] for spread in CONTROLS)]
        best = " ".join(f"{top1:>8.2f}" for top1 in tops)
        print(f"{seed:>4} {best}   {volumes}   predictor used in {sum(row['predictor_used'])} rounds", flush=True)
    found = compared(rows, test=options.test)
    print()
    for what, comparison in found.items():
        print(f"{what}: {comparison['sentence']}")
    if options.out:
        said = {"run": str(options.run), "scores": options.scores, "max_macs": limit.most, "machine": machine()}
        said |= {"population": options.population, "generations": options.generations}
        content = said | {"calibration_images": options.calibration_images, "seeds": rows, "compared": found}
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
