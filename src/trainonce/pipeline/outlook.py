"""Whether more time would help a training that has ended: a sentence."""

from collections.abc import Sequence
from itertools import pairwise

from trainonce.run.lines import MetricsLine


def learned(lines: Sequence[MetricsLine]) -> float:
    """Percent of the varied training images classified correctly over the last epoch or so, of a run's lines.

    The last line alone may be of a few steps.
    """
    done = [0, *(line.step - line.left_out for line in lines)]
    steps = [after - before for before, after in pairwise(done)]
    last = [(line.top1, of) for line, of in zip(lines, steps, strict=True) if line.epoch > lines[-1].epoch - 1]
    return sum(top1 * of for top1, of in last) / sum(of for _, of in last)


def outlook(train: float, validate: float) -> str:
    """Whether more time would help, in a sentence, from top-1 in percent: a rule of thumb.

    It goes by what `benchmarks/outlook.py` found (docs/worth.md). `train` is of training images as they are varied,
    `validate` the mean of probes on images as they are.
    """
    shown = f"subnets classify {train:.1f}% of the varied training images correctly, and {validate:.1f}% on validate"
    if train > validate + OVERFITTING:
        return f"Overfitting: {shown}. More images, or stronger variation of them, would help more than time."
    if train < LEARNING or train < min(validate + ALIKE, LEARNED):
        points = (100 - validate) / AVOIDED
        gain = (
            "less than a point" if points < 0.75 else "about a point" if points < 1.5 else f"some {points:.0f} points"
        )
        return f"Still rising: {shown}. Twice the time would likely give {gain} more."
    return f"Level: {shown}. Training longer would likely give little."


LEARNING = 90.0
"""Percent of the training images below which more time has helped, however far validate is behind."""
AVOIDED = 8
"""One in so many errors on validate was avoided by twice the time, in the median of 29 trainings below that."""
LEARNED = 97.0
"""Percent from which on little is left to rise."""
ALIKE, OVERFITTING = 5.0, 20.0
"""How many points training images are ahead of validate: fewer than the one, and both still rise; more than the other,
and it is overfitting."""
