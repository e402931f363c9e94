"""The conclusion of factorial studies, on made-up lines whose truth is known."""

import numpy as np
import pytest
from tests.support.lines import a_result
from tests.support.study_results import a_study, cells, compared, conclude

from trainonce.lab.studies.conclusion import CANNOT_TELL
from trainonce.lab.studies.factorial import factorial_effects


@pytest.mark.parametrize("shared", [True, False])
def test_factorial_effects_are_those_put_in(shared: bool) -> None:
    truth = {"order": 1.0, "distillation": -0.4, "sampler": 3.0, "order x sampler": 0.6}
    found = factorial_effects([a_result(**line) for line in cells(truth, shared=shared)])
    means = {name: np.mean([np.mean(values) for values in by_seed.values()]) for name, by_seed in found.items()}
    expected = truth | {"order x distillation": 0, "distillation x sampler": 0}
    assert means == pytest.approx(expected)
    assert len(found["order"][0]) == (5 if shared else 1)


def test_effects_are_the_coefficients_of_least_squares() -> None:
    """Twice the coefficients of a regression on -1 and 1, on noise."""
    rng = np.random.default_rng(0)
    lines = [line | {"top1": float(rng.normal())} for line in cells({}) if line["seed"] == 0 and line["arch"] == "a0"]
    signs = np.array(
        [
            [1 if line["factors"][n] in ("shrinking", "teacher", "stratified") else -1 for n in line["factors"]]
            for line in lines
        ]
    )
    o, d, s = signs.T
    design = np.stack([np.ones(8), o, d, s, o * d, o * s, d * s], axis=1)
    fitted = np.linalg.lstsq(design, np.array([line["top1"] for line in lines]), rcond=None)[0]
    found = factorial_effects([a_result(**line) for line in lines])
    assert [values[0][0] for values in found.values()] == pytest.approx((2 * fitted[1:]).tolist())


@pytest.mark.parametrize(
    ("effect", "noise", "verdict", "says"),
    [
        ({"sampler": 3.0, "order": 0.5}, 0.02, "selection bias", "mitigation matters less than selection bias: "),
        (
            {"sampler": -3.0, "order": 0.5},
            0.02,
            "sampler hurts",
            "the sampler matters more, and it hurts: the sampler ",
        ),
        ({"sampler": 0.5, "distillation": -3.0}, 0.02, "mitigation", "matters 2.5 points less than "),
        ({"sampler": 0.1, "order": 0.1}, 0.02, "equivalent", "matters as much as selection bias, within 0.5 points"),
        ({"sampler": 1.0, "order": 0.1}, 3, CANNOT_TELL, "cannot tell whether mitigation matters less"),
        ({"sampler": 1.0, "order": 3.0, "distillation": -2.9}, 0.02, "mitigation", "mitigation matters more"),
    ],
)
def test_factorial_verdicts(effect: dict[str, float], noise: float, verdict: str, says: str) -> None:
    """The last: order and distillation nearly cancel as a package, yet each matters more than the sampler."""
    found = conclude(a_study("factorial"), cells(effect, noise), [])
    assert found.verdict == verdict
    assert says in found.sentence
    largest = max(effect, key=lambda name: abs(effect[name]))
    assert found.sentence.startswith(("The largest effect is", "The largest estimate is"))
    assert f" {largest}: " in found.sentence or verdict == "equivalent"


def test_six_effects_are_corrected_together() -> None:
    """An order whose p is 0.02 by itself: six times that is no effect; and the sampler's is tested beside it."""
    alone = conclude(a_study("factorial"), cells({"order": 3.0}, noise=0.2457), [])
    found = compared(alone, "order shrinking", "order none")
    assert found.p_difference == pytest.approx(0.0195, abs=0.0005)
    assert found.p_holm == pytest.approx(6 * 0.0195, abs=0.003)
    assert found.low is not None
    assert found.low > 0
    assert found.verdict == CANNOT_TELL
    assert "whether shrinking order instead of none matters cannot be told (+3.0 points" in found.sentence
    assert "corrected p = 0.12" in found.sentence


def test_a_missing_cell_cannot_tell() -> None:
    lines = [line for line in cells({"sampler": 3.0}) if line["arm"] != "111"]
    assert conclude(a_study("factorial"), lines, []).sentence == "Cannot tell: no seed has results in all eight cells."
