"""The section on searches: each run's front beside that of random search."""

from trainonce.evaluation.evaluator import wilson
from trainonce.names import plural
from trainonce.report.figures.population import extract_command
from trainonce.report.figures.search import SearchInfo, draw_search, search_info, value_of
from trainonce.report.loading import Group
from trainonce.report.parts import Cell, Command, Figure, Section, Table, picture
from trainonce.search.resources import SHOWN


def search_section(group: Group) -> Section:
    """What was found by searching, a figure for each run."""
    infos = search_info(group.runs)
    return Section(
        key="search",
        heading="Found by search",
        figures=[_figure(number, info, several=len(infos) > 1) for number, info in enumerate(infos)],
        how_to_record="trainonce search RUN",
    )


def _figure(number: int, info: SearchInfo, *, several: bool) -> Figure:
    title = f"{info.arm}, seed {info.seed}: {_title(info)}" if several else _title(info)
    judged = " and ".join(["top-1", *info.minimised])
    caption = (
        f"Each line is a Pareto front: of the subnets looked at no other is as good in {judged}. Both sides know the "
        f"{plural(info.recorded, 'score')} recorded before. Top-1 is on the {info.split} images by which subnets were "
        f"chosen, so the best is a little lucky on them.{_test(info)}{_predictor(info)} Click a subnet for the command "
        "that takes it out."
    )
    return Figure(
        key=f"search{number}",
        title=title,
        caption=caption,
        summary=f"Step lines of top-1 against {info.resource}. {title}",
        pictures=[picture(draw_search(info))],
        tables=[_table(info)],
        clickable=True,
    )


def _title(info: SearchInfo) -> str:
    found, *others = info.sides
    limits = " and ".join(f"{most / SHOWN[name][1]:.4g} {SHOWN[name][0]}" for name, most in info.limits.items())
    limits += "" if info.numbers == "float32" else f", counted in {info.numbers}"
    title = (
        f"{'Within ' + limits if limits else 'Without a limit'}, search found {found.front[0].top1:.2f}% with "
        f"{plural(found.evaluations, 'true score')}"
    )
    for control in others:
        title += (
            f"; random search found {control.front[0].top1:.2f}% with {control.evaluations}, and its front fills "
            f"{control.hypervolume:.3f} of the box around all that was scored, against {found.hypervolume:.3f}"
        )
    return f"{title}."


def _test(info: SearchInfo) -> str:
    if info.test is None:
        return ""
    low, high = wilson(info.test.top1, info.test.images)
    return f" On the test images the chosen one has {info.test.top1:.2f}% (95% interval {low:.1f} to {high:.1f})."


def _predictor(info: SearchInfo) -> str:
    return "" if info.predictor is None else f" The predictor: {info.predictor.why}."


def _table(info: SearchInfo) -> Table:
    others = [name for name in info.sides[0].front[0].measures if name in SHOWN and name not in ("macs", "params")]
    rows: list[list[Cell]] = [
        [
            side.label,
            entry.top1,
            value_of(entry, "macs"),
            value_of(entry, "params"),
            *(value_of(entry, name) for name in others),
            "yes" if entry.known else "no",
            Command(extract_command(info.run, entry.arch)),
        ]
        for side in info.sides
        for entry in side.front
    ]
    columns = ["found by", "top-1, %", "M MACs", "M params", *(SHOWN[name][0] for name in others), "known before"]
    return Table(caption="the subnets on both fronts", columns=[*columns, "take it out"], rows=rows)
