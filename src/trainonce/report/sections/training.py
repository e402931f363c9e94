"""The sections on training: time, learning curves, what was exposed, and what was trained against what is evaluated."""

from trainonce.lab.measures.exposure import SelectionBias
from trainonce.names import plural
from trainonce.report.figures.exposure import draw_exposure, draw_selection, exposure_info
from trainonce.report.figures.training import (
    Against,
    CurvesInfo,
    Quantity,
    curves_info,
    draw_curves,
    draw_times,
    spoken,
    times_info,
)
from trainonce.report.loading import Group, PlottedScore
from trainonce.report.parts import Cell, Figure, Picture, Section, Table, picture


def times_section(group: Group) -> Section:
    """Training time bars with the reduction factors."""
    how = "runs trained by this version record seconds"
    info = times_info(group.runs)
    if info is None:
        return Section(key="times", heading="Training time", how_to_record=how)
    slowest = next(arm for arm in info.arms if arm.arm == info.slowest)
    fastest = min(info.arms, key=lambda arm: arm.seconds.mean)
    title = f"{slowest.arm} trained for {spoken(slowest.seconds.mean)}"
    if fastest.times_less < 1.02:
        title = f"All arms trained for about {spoken(slowest.seconds.mean)}"
    else:
        title += f"; {fastest.arm}, the quickest, in {fastest.times_less:.2f}x less ({spoken(fastest.seconds.mean)})"
    beside = [n for n in info.beside if n > 1]
    caption = "Bars are training seconds, means over seeds; the factor is how many times less than the slowest. " + (
        f"Up to {max(beside)} runs trained side by side and slowed each other: the ratios are fair only where that was "
        "the same for all."
        if beside
        else "Evaluation is not in them."
    )
    rows: list[list[Cell]] = [
        [a.arm, a.seconds.mean, a.seconds.low, a.seconds.high, a.seconds.seeds, a.passes, a.times_less]
        for a in info.arms
    ]
    columns = ["arm", "seconds", "low", "high", "runs", "subnet passes", "times less"]
    table = Table(caption="training time, with 95% intervals over runs", columns=columns, rows=rows)
    if group.of_one_run:
        text = f"Training took {spoken(slowest.seconds.mean)}, {slowest.passes:.4g} passes of subnets over the images."
        return Section(key="times", heading="Training time", text=[text])
    figure = Figure(
        key="bars",
        title=f"{title}.",
        caption=caption,
        summary=f"Bars of training time. {title}.",
        pictures=[picture(draw_times(info))],
        tables=[table],
    )
    return Section(key="times", heading="Training time", figures=[figure])


def curves_section(group: Group) -> Section:
    """Loss and top-1 while training, against passes and against seconds."""
    info = curves_info(group.runs)
    if info is None:
        return Section(key="curves", heading="Learning curves", how_to_record="metrics.jsonl of the runs")
    final: dict[str, list[float]] = {}
    for curve in info.curves:
        final.setdefault(curve.arm, []).append(curve.top1[-1])
    means = {arm: sum(values) / len(values) for arm, values in final.items()}
    listed = ", ".join(f"{arm} {top1:.0f}%" for arm, top1 in sorted(means.items(), key=lambda item: -item[1]))
    if group.of_one_run:
        listed = listed.removeprefix(group.runs[0].arm).strip()
    title = f"Top-1 of the subnets being trained, at the end: {listed}."
    caption = (
        "Loss and top-1 of the subnets being trained, on augmented training images (top-1 where there are some that "
        "are not mixed: of these), one line a run, each point a mean "
        "over a stretch. The subnets differ from step to step"
        f"{'' if group.of_one_run else ' and from arm to arm'}, and the loss against a teacher is added to that of the "
        "labels where there is one, so levels compare only loosely; the population above is the fair comparison."
    )
    figure = Figure(
        key="lines",
        title=title,
        caption=caption,
        summary=f"Lines of loss and top-1. {title}",
        pictures=_curve_pictures(info),
        tables=[_curve_table(info)],
    )
    return Section(key="curves", heading="Learning curves", figures=[figure])


def _curve_pictures(info: CurvesInfo) -> list[Picture]:
    wanted: list[tuple[str, Quantity, Against]] = [
        ("loss against passes", "loss", "passes"),
        ("top-1 against passes", "top1", "passes"),
    ]
    if any(curve.seconds for curve in info.curves):
        wanted += [("loss against seconds", "loss", "seconds"), ("top-1 against seconds", "top1", "seconds")]
    return [picture(draw_curves(info, quantity, against), label) for label, quantity, against in wanted]


def _curve_table(info: CurvesInfo) -> Table:
    rows: list[list[Cell]] = []
    for curve in info.curves:
        seconds: list[float] | list[None] = curve.seconds or [None] * len(curve.passes)
        drawn = list(zip(curve.passes, seconds, curve.loss, curve.top1, strict=True))
        step = max(1, len(drawn) // 20)
        kept = [*drawn[:-1:step], drawn[-1]]
        rows += [[curve.arm, curve.seed, *values] for values in kept]
    columns = ["arm", "seed", "passes", "seconds", "loss", "top-1, %"]
    return Table(caption="learning curves, about twenty points a run", columns=columns, rows=rows)


def exposure_section(group: Group, scored: dict[str, list[PlottedScore]]) -> Section:
    """How much each value of each choice was trained."""
    arms = exposure_info(group.runs, scored)
    if not arms:
        return Section(key="exposure", heading="What was exposed", how_to_record="exposure.npz of the runs")
    least, arm = min(((share, arm.arm) for arm in arms for share in arm.shares), key=lambda pair: pair[0].exposure)
    whose = "" if group.of_one_run else f" of {arm}"
    title = (
        f"The value trained least is {least.value} of {least.place}{whose}: it took part in "
        f"{least.exposure:.0%} of the training, by learning rate."
    )
    rows: list[list[Cell]] = [[a.arm, s.place, s.value, s.exposure, s.choice] for a in arms for s in a.shares]
    caption = (
        "In percent. Exposure: of the sum of learning rates over all steps, the part in steps that used the weights "
        "which a value adds (a kernel of 5 uses that of 3 too, so larger values are exposed less). Choice: of all "
        "subnet passes, the part whose subnet has exactly that value. Rows are stages (depth d) and blocks (kernel "
        "size k, expand ratio e). Means over seeds."
    )
    named = {one.arm: "" if group.of_one_run else f", {one.arm}" for one in arms}
    pictures = [picture(draw_exposure(one), f"exposure{named[one.arm]}") for one in arms]
    pictures += [picture(draw_exposure(one, "choice"), f"choice{named[one.arm]}") for one in arms]
    figure = Figure(
        key="maps",
        title=title,
        caption=caption,
        summary=f"Heat maps. {title}",
        pictures=pictures,
        tables=[
            Table(
                caption="exposure and choice of every value, as shares of 1",
                columns=["arm", "place", "value", "exposure", "choice"],
                rows=rows,
            )
        ],
    )
    return Section(key="exposure", heading="What was exposed", figures=[figure])


def selection_section(group: Group, scored: dict[str, list[PlottedScore]]) -> Section:
    """What was trained against what is evaluated: selection bias."""
    arms = [arm for arm in exposure_info(group.runs, scored) if arm.bias is not None]
    if not arms:
        how = "exposure.npz of the runs, and trainonce evaluate"
        return Section(key="selection", heading="Selection bias", how_to_record=how)
    listed = "; ".join(_percent(arm.bias) + ("" if group.of_one_run else f" in {arm.arm}") for arm in arms)
    title = f"Part of the training that lay at other MACs than the evaluation: {listed}."
    rows: list[list[Cell]] = [
        [arm.arm, left, right, trained, evaluated]
        for arm in arms
        for left, right, trained, evaluated in zip(
            arm.edges_m[:-1], arm.edges_m[1:], arm.trained, arm.evaluated or [], strict=True
        )
    ]
    caption = (
        "Filled: how the subnet passes of training lie over MACs. Outlined: how the evaluated subnets do. The "
        "percentage is the total variation between the two histograms: 0% the same, 100% nothing in common; beside it "
        "their Jensen-Shannon divergence, from 0 to 1 bit. What is evaluated but hardly trained suffers from selection "
        f"bias, which is not interference. Both numbers are of {plural(arms[0].bins, 'equal bin')} over the space's "
        f"range, joined into {len(arms[0].trained)} bars. Subnets evaluated in buckets, and few of them, leave bins "
        "empty, which alone keeps the numbers above 0: compare them between trainings."
    )
    figure = Figure(
        key="histograms",
        title=title,
        caption=caption,
        summary=f"Histograms over MACs. {title}",
        pictures=[picture(draw_selection(arm), f"{arm.arm}: {_apart(arm.bias)}") for arm in arms],
        tables=[
            Table(
                caption="how far what was trained is from what is evaluated",
                columns=["arm", "total variation", "Jensen-Shannon, bits", "subnets"],
                rows=[
                    [arm.arm, arm.bias.total_variation, arm.bias.jensen_shannon, len(scored[arm.arm])]
                    for arm in arms
                    if arm.bias
                ],
            ),
            Table(
                caption="shares of passes trained and of subnets evaluated, by MACs",
                columns=["arm", "from, M MACs", "to", "trained", "evaluated"],
                rows=rows,
            ),
        ],
    )
    return Section(key="selection", heading="Selection bias", figures=[figure])


def _percent(bias: SelectionBias | None) -> str:
    return "" if bias is None else f"{bias.total_variation:.0%}"


def _apart(bias: SelectionBias | None) -> str:
    return "" if bias is None else f"{_percent(bias)} apart, {bias.jensen_shannon:.2f} bits"
