"""The engineer's page: the networks of one run, what they do class by class, and the commands to go on."""

from collections.abc import Sequence

from trainonce.data.baseline import BELOW_IT
from trainonce.evaluation.evaluator import Score
from trainonce.evaluation.per_class import WorstImage
from trainonce.evaluation.population import middle_budget, pareto_front
from trainonce.names import command, plural
from trainonce.report.figures.charts import millions
from trainonce.report.figures.classes import draw_confusion
from trainonce.report.figures.population import extract_command
from trainonce.report.loading import RunRecord
from trainonce.report.parts import Cell, Command, Figure, Picture, Section, Table, Thumbnail, picture
from trainonce.report.taken import TakenOut
from trainonce.report.thumbnails import thumbnail

MOST_DRAWN = 30
"""Confusion matrices of more classes than these are a table of the pairs that are confused most."""
PAIRS = 25
"""At most so many pairs of classes are listed."""
FRONT = 6
"""At most so many subnets are offered where none was taken out."""


def networks_sections(run: RunRecord) -> list[Section]:
    """The engineer's sections of a run."""
    by_class = [one for one in run.taken if one.per_class is not None]
    return [
        _networks(run),
        *([classes_section(by_class)] if by_class else []),
        _commands(run),
    ]


def _networks(run: RunRecord) -> Section:
    taken = run.taken
    sentences = [_best(taken)] if taken else ["No network has been taken out of this run yet."]
    if run.baseline is not None:
        sentences.append(f"For comparison: {run.baseline}.")
        best = max((one.scores["validate"].top1 for one in taken if "validate" in one.scores), default=None)
        if best is not None and best < run.baseline.top1:
            sentences.append(f"Warning: the networks' best on validate, {best:.1f}%, is below that. {BELOW_IT}")
    return Section(
        key="networks",
        heading="Your networks",
        text=sentences,
        tables=[_table(taken)] if taken else [_offered(run)] if run.scores.get("validate") else [],
    )


def _best(taken: Sequence[TakenOut]) -> str:
    tested = [one for one in taken if "test" in one.scores]
    split = "test" if tested else "validate"
    scored = [one for one in taken if split in one.scores]
    count = f"{plural(len(taken), 'network was', 'networks were')} taken out"
    if not scored:
        return f"{count}."
    best = max(scored, key=lambda one: one.scores[split].top1)
    score, named = best.scores[split], f"the best, {best.name}," if len(taken) > 1 else best.name
    low, high = score.interval()
    return (
        f"{count}; {named} has {score.top1:.1f}% on {score.images} {split} images (95% interval {low:.1f} to "
        f"{high:.1f}) at {millions(best.macs)} MACs."
    )


def _table(taken: Sequence[TakenOut]) -> Table:
    splits = [split for split in ("test", "validate") if any(split in one.scores for one in taken)]
    measured = list(dict.fromkeys(name for one in taken for name in one.latency_ms))
    top5 = any(one.per_class and one.per_class.top5 is not None for one in taken)
    columns = ["network", *(f"{split}, % (95% interval)" for split in splits)]
    columns += ["M MACs", "M params", "MB", *(f"ms, {name}" for name in measured)]
    columns += [*(["top-5, %"] if top5 else []), "calibration error"]
    rows: list[list[Cell]] = []
    for one in taken:
        row: list[Cell] = [one.name, *(_with_interval(one.scores.get(split)) for split in splits)]
        row += [one.macs / 1e6, one.params / 1e6, None if one.size is None else one.size / 1e6]
        row += [one.latency_ms.get(name) for name in measured]
        row += [_tenths(one.per_class and one.per_class.top5)] if top5 else []
        rows.append([*row, _tenths(one.per_class and one.per_class.calibration_error)])
    caption = (
        "The networks by size. Intervals are 95%, Wilson's: how far other images of the same kind would move the "
        "figure. What was scored on validate was also chosen on it, and flatters a little. Times are of one image, "
        "where a file was exported or a latency table made. The calibration error says how many points confidence and "
        "accuracy are apart."
    )
    return Table(caption=caption, columns=columns, rows=rows, shown=True)


def _with_interval(score: Score | None) -> str | None:
    return None if score is None else "{:.1f} ({:.1f} to {:.1f})".format(score.top1, *score.interval())


def _tenths(percent: float | None) -> float | None:
    return None if percent is None else round(percent, 1)


def _offered(run: RunRecord) -> Table:
    """Of what was scored, the best under some budgets, with the command that takes each out."""
    front = pareto_front(run.scores["validate"])
    step = max(1, -(-len(front) // FRONT))
    rows: list[list[Cell]] = [
        [
            one.macs / 1e6,
            one.params / 1e6,
            _with_interval(Score(top1=one.top1, loss=0.0, images=one.images)) if one.images else f"{one.top1:.1f}",
            Command(f"{extract_command(one.run, one.arch)} --test"),
        ]
        for one in front[::-step][::-1]
    ]
    return Table(
        caption="The best scored under some budgets, each with the command that takes it out and tests it.",
        columns=["M MACs", "M params", "validate, % (95% interval)", "take it out"],
        rows=rows,
        shown=True,
    )


def classes_section(taken: Sequence[TakenOut]) -> Section:
    """What these networks do class by class; `per_class` of each is there."""
    names, split = taken[0].classes, taken[0].split
    shown = [one for one in taken if (one.classes, one.split) == (names, split)]
    title = _least(max(shown, key=lambda one: one.scores[split].top1 if split in one.scores else 0.0), names, split)
    figures = []
    if len(names) <= MOST_DRAWN:
        pictures = [Picture(label=one.name, spec=_confusion(one, names)) for one in shown]
        caption = (
            "Rows are what the images are, columns what the network takes them for; numbers are images, and the darker "
            "a cell, the larger its share of the row. What is off the diagonal is wrong."
        )
        figures = [
            Figure(
                key="confusion",
                title=title,
                caption=caption,
                summary=f"Confusion matrices. {title}",
                pictures=pictures,
                tables=[],
            )
        ]
    text = [] if figures else [title]
    pairs = [] if figures else [_pairs(shown, names)]
    tables = [_recall(shown, names, split), *pairs, _worst(shown, names, split)]
    return Section(key="classes", heading="Class by class", text=text, figures=figures, tables=tables)


def _confusion(one: TakenOut, names: Sequence[str]) -> dict[str, object]:
    assert one.per_class is not None
    return picture(draw_confusion(one.per_class.confusion, names)).spec


def _least(one: TakenOut, names: Sequence[str], split: str) -> str:
    found = one.per_class
    assert found is not None
    missed = found.missed()
    if not missed:
        return f"{one.name} recognises all {split} images."
    number, recall = missed[0]
    others = found.taken_for(number)
    most_often = f"; the others it takes most often for {names[others[0][1]]}" if others else ""
    return f"{one.name} finds {names[number]} least: {recall} of its {split} images{most_often}."


def _recall(taken: Sequence[TakenOut], names: Sequence[str], split: str) -> Table:
    found = [one.per_class for one in taken if one.per_class is not None]
    counts = found[0].counts()
    rows: list[list[Cell]] = [
        [
            name,
            counts[number],
            *(_tenths(one.recall[number]) for one in found),
            *(_tenths(one.precision[number]) for one in found),
        ]
        for number, name in enumerate(names)
    ]
    columns = [
        "class",
        "images",
        *(f"recall, {one.name}" for one in taken),
        *(f"precision, {one.name}" for one in taken),
    ]
    caption = (
        f"Each class on the {split} images, in percent. Recall: of its images, those classified correctly. Precision: "
        "of the images taken for it, those that are of it."
    )
    return Table(caption=caption, columns=columns, rows=rows, shown=True)


def _pairs(taken: Sequence[TakenOut], names: Sequence[str]) -> Table:
    found = [
        (count, one.name, names[number], names[other])
        for one in taken
        if one.per_class is not None
        for number in range(len(names))
        for count, other in one.per_class.taken_for(number)
    ]
    rows: list[list[Cell]] = [
        [by, name, other, count] for count, by, name, other in sorted(found, key=lambda row: -row[0])[:PAIRS]
    ]
    columns = ["network", "class", "taken for", "images"]
    return Table(caption="The classes that are confused most.", columns=columns, rows=rows, shown=True)


def _worst(taken: Sequence[TakenOut], names: Sequence[str], split: str) -> Table:
    rows: list[list[Cell]] = [
        [
            one.name,
            _picture(one, image, names),
            image.file or f"row {image.row}",
            names[image.actual],
            names[image.taken_for],
            _tenths(100 * image.probability),
            _tenths(100 * image.of_actual),
        ]
        for one in taken
        if one.per_class is not None
        for image in one.per_class.worst
    ]
    columns = ["network", "picture", "image", "is", "taken for", "sure of that, %", "sure of the right one, %"]
    seen = any(row[1] is not None for row in rows)
    return Table(
        caption=f"the {split} images that are classified worst",
        columns=columns if seen else [name for name in columns if name != "picture"],
        rows=rows if seen else [[row[0], *row[2:]] for row in rows],
    )


def _picture(one: TakenOut, image: WorstImage, names: Sequence[str]) -> Thumbnail | None:
    if one.images is None or image.file is None:
        return None
    return thumbnail(one.images, image.file, f"{names[image.actual]}, taken for {names[image.taken_for]}")


def _commands(run: RunRecord) -> Section:
    made = str(run.provenance.get("command", ""))
    rows: list[list[Cell]] = [["how it was trained", Command(made)]] if made else []
    if run.taken:
        best = max(run.taken, key=lambda one: one.scores["test"].top1 if "test" in one.scores else -1.0)
        rows += [
            [what, Command(command("trainonce", *words))]
            for what, words in (
                ("export it for a device", ("export", best.path, "--to", "onnx")),
                ("classify a picture", ("predict", best.path, "picture.jpg")),
                ("train it further, on its own", ("finetune", best.path, "--epochs", "10", "--test")),
                ("score it again, class by class", ("evaluate", best.path, "--split", "test")),
            )
        ]
    rows.append(["score many subnets", Command(command("trainonce", "evaluate", run.path))])
    known = [one.macs for one in run.scores.get("validate", [])]
    known += [one.macs for one in run.front.search.front] if run.front else []
    which = ["--max-macs", middle_budget(known)] if known else ["largest"]
    if known:
        rows.append(["search under other limits", Command(command("trainonce", "search", run.path, *which))])
    rows.append(["take another network out", Command(command("trainonce", "extract", run.path, *which, "--test"))])
    caption = "Commands to reproduce this and to go on" + (f"; with {best.name} as the example." if run.taken else ".")
    return Section(
        key="go-on",
        heading="Go on",
        tables=[Table(caption=caption, columns=["what", "command"], rows=rows, shown=True)],
    )
