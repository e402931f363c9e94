"""The page of docs/paper_schedule.md against the committed results, recomputed plainly."""

import re
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from trainonce.records import read_lines

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "paper_schedule.md").read_text()
SETS = {"MNIST": "paper-mnist", "CIFAR-10": "paper-cifar10", "MNIST, on a CPU": "paper-mnist-cpu"}
ON_A_CPU = "MNIST, on a CPU"
CORRECTED = (
    *(("rss", "rss-short"), ("rss", "stratified"), ("rss", "ps@rss-passes"), ("rss", "ps-ofa")),
    *(("rss", "ps-released"), ("rss", "rss-published"), ("rss-published", "ps-published")),
    *(("ps-released", "ps-published"), ("stratified", "ps@rss-passes")),
)
"""The study's comparisons on a CPU but for the primary one, which is tested by itself."""


def means(name: str) -> dict[str, list[float]]:
    """The mean top-1 of each run, by arm of three seeds, in their order; 60 subnets each, the same in all."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for line in read_lines(DOCS / "results" / SETS[name] / "results.jsonl"):
        found.setdefault((line["arm"], line["seed"]), {})[line["arch"]] = line["top1"]
    assert len({frozenset(subnets) for subnets in found.values()}) == 1
    assert {len(subnets) for subnets in found.values()} == {60}
    arms = {arm for arm, _ in found if all((arm, seed) in found for seed in range(3))}
    return {arm: [fmean(found[arm, seed].values()) for seed in range(3)] for arm in arms}


def compared(name: str, one: str, other: str) -> tuple[str, float]:
    """The difference with Student's interval, as the page writes it, and p."""
    tops = means(name)
    apart = np.subtract(tops[one], tops[other])
    low, high = stats.t.interval(0.95, 2, apart.mean(), stats.sem(apart))
    written = f"{apart.mean():+.1f} ({low:.1f} to {high:.1f})".replace("-", "−")
    return written, float(stats.ttest_1samp(apart, 0).pvalue)


def row_of(question: str) -> list[str]:
    (row,) = re.findall(rf"^\| {re.escape(question)}.*$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")[1:-1]]


@pytest.mark.parametrize("name", SETS)
def test_the_table_of_trainings(name: str) -> None:
    seconds: dict[str, list[float]] = {}
    passes: dict[str, set[float]] = {}
    for line in read_lines(DOCS / "results" / SETS[name] / "times.jsonl"):
        seconds.setdefault(line["arm"], []).append(line["train_seconds"])
        passes.setdefault(line["arm"], set()).add(round(line["passes"]))
    found = means(name)
    for arm, tops in found.items():
        (row,) = re.findall(rf"^\| {name} \| `{arm}`[^|]* \| (.*) \|$", PAGE, re.MULTILINE)
        shown = [f"{top:.1f}" for top in (*tops, fmean(tops))]
        took = "" if name == ON_A_CPU else f"{fmean(seconds[arm]):.0f}"
        assert [cell.strip() for cell in row.split("|")] == [f"{passes[arm].pop()}", *shown, took]
    assert len(re.findall(rf"^\| {name} \| `", PAGE, re.MULTILINE)) == len(found)


@pytest.mark.parametrize("other", ["ps", "rss-short"])
def test_the_differences_on_a_gpu(other: str) -> None:
    number = 1 if other == "ps" else 5
    for name, cell in zip(("MNIST", "CIFAR-10"), row_of(f"{number}. `rss` − `{other}`")[1:3], strict=True):
        written, p = compared(name, "rss", other)
        assert cell == f"{written}, p = {p:.3f}"


def test_the_primary_difference_on_a_cpu() -> None:
    written, p = compared(ON_A_CPU, "rss", "ps")
    assert row_of("1 again: `rss` − `ps`")[1] == f"{written}, p = {p:.3f}"


def corrected_ps() -> dict[tuple[str, str], float]:
    """Holm's p: the least times how many there are, the next times one fewer, and never less than the one before."""
    ps = {pair: compared(ON_A_CPU, *pair)[1] for pair in CORRECTED}
    holm, least = {}, 0.0
    for place, pair in enumerate(sorted(ps, key=lambda pair: ps[pair])):
        least = max(least, min(1.0, (len(ps) - place) * ps[pair]))
        holm[pair] = least
    return holm


def test_the_other_differences_on_a_cpu() -> None:
    holm = corrected_ps()
    rows = {
        ("rss", "ps@rss-passes"): "2. `rss` − `ps@rss-passes`",
        ("rss-published", "ps-published"): "2. `rss-published` − `ps-published`",
        ("rss", "ps-ofa"): "2. `rss` − `ps-ofa`",
        ("rss", "ps-released"): "2. `rss` − `ps-released`",
        ("ps-released", "ps-published"): "4. `ps-released` − `ps-published`",
        ("rss", "rss-short"): "5 again: `rss` − `rss-short`",
        ("stratified", "ps@rss-passes"): "7. `stratified` − `ps@rss-passes`",
    }
    for pair, question in rows.items():
        assert row_of(question)[1].removesuffix(", on a CPU") == f"{compared(ON_A_CPU, *pair)[0]}, p = {holm[pair]:.3f}"
    written, _ = compared(ON_A_CPU, "stratified", "rss")
    asked = row_of("6. `stratified` − `rss`")[1].removesuffix(", on a CPU")
    assert asked == f"{written}, p = {holm['rss', 'stratified']:.3f}"


def test_the_lead_over_ps_at_its_published_rates() -> None:
    tops = means(ON_A_CPU)
    one, two, three = (f"{apart:.1f}" for apart in np.subtract(tops["rss"], tops["ps-published"]))
    said = f"by {one}, {two} and {three} points"
    assert said in PAGE


def test_the_readme_has_the_lead_at_published_rates() -> None:
    """The registered comparison: both at published rates, its p corrected with the study's others."""
    pair = ("rss-published", "ps-published")
    lead = compared(ON_A_CPU, *pair)[0].split()[0].removeprefix("+")
    p = f"corrected p {corrected_ps()[pair]:.2f}"
    said = f"leads there by {lead} points, which three seeds do not tell from nothing ({p};"
    assert said in (DOCS.parent / "README.md").read_text()
