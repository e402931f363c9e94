"""Synthetic runs and studies: the files of the real thing, with architectures of a real space and made-up numbers.

The numbers are drawn so that they look like results; each test that checks a number writes that number itself.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.lines import a_finished, a_result

from trainonce.data import DataSource
from trainonce.evaluation.population import draw_population, make_buckets
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES
from trainonce.records import to_json, write_lines
from trainonce.run.directory import RunConfig, RunDirectory
from trainonce.space import Architecture

ARMS = {"ps-released": -9.0, "ps": -2.0, "rss": 0.0, "rss-short": -3.5}
PROVENANCE = {
    "command": "trainonce study baseline cifar10",
    "started": "2026-11-20T20:15:00+00:00",
    "trainonce": "0.1.0",
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "python": "3.11.7",
    "machine": "Linux x86_64",
    "cpus": 2,
    "threads": 1,
    "device": "cpu",
}


class Synthetic:
    """Writes runs and studies of one supernet into directories."""

    def __init__(self, net: MobileNetV3, *, seed: int = 0) -> None:
        self.net = net
        self.rng = random.Random(seed)
        archs = [net.space.smallest(), net.space.largest()]
        self.low, self.high = (net.cost_of(arch).macs for arch in archs)

    def top1(self, arch: Architecture, offset: float) -> float:
        macs = self.net.cost_of(arch).macs
        size = math.log(macs / self.low) / math.log(self.high / self.low)
        return round(min(99.9, 70 + 4 * size + offset + self.rng.gauss(0, 0.7)), 2)

    def line(self, arch: Architecture, offset: float, **more: Any) -> dict[str, Any]:
        cost = self.net.cost_of(arch)
        named = {"arch": str(arch), "macs": cost.macs, "params": cost.params, "top1": self.top1(arch, offset)}
        return named | {"loss": 1.0, "images": 10000, "split": "test", **more}

    def probes(self, count: int) -> list[Architecture]:
        archs = {arch: self.net.cost_of(arch).macs for arch in (self.net.space.sample(self.rng) for _ in range(count))}
        archs |= {arch: self.net.cost_of(arch).macs for arch in (self.net.space.smallest(), self.net.space.largest())}
        return sorted(archs, key=lambda arch: archs[arch])

    def run(
        self, path: Path, *, recipe: str = "rss", seed: int = 0, minutes: float = 40.0, scale: float = 0.03
    ) -> RunDirectory:
        run = RunDirectory(path)
        run.create(
            RunConfig(
                seed=seed,
                data=DataSource(name_or_path="cifar10"),
                data_fingerprint="81a78a69f5c6a3e9",
                family=self.net.family,
                model=self.net.settings.model_dump(mode="json"),
                recipe=RECIPES[recipe].scaled(scale),
                provenance=PROVENANCE,
            )
        )
        self.metrics(run, minutes)
        return run

    def metrics(self, run: RunDirectory, minutes: float, count: int = 200) -> None:
        passes = run.config().recipe.passes
        lines = []
        for i in range(1, count + 1):
            part = i / count
            loss = 0.9 + 1.4 * math.exp(-4 * part) + self.rng.gauss(0, 0.03)
            line = {"step": 20 * i, "epoch": passes * part, "lr": 0.01, "loss": loss, "top1": 70 - 22 * loss + 20}
            lines.append(
                line
                | {
                    "phase": "a",
                    "epoch": part,
                    "lr": 0.1,
                    "passes": passes * part,
                    "seconds": 60 * minutes * part,
                    "macs": 7541728,
                    "arch": "a",
                }
            )
        write_lines(run.metrics_file, lines)

    def exposure(self, run: RunDirectory, *, favour: float = 1.0) -> None:
        """As uniform sampling has it, with larger values drawn `favour` times as often as smaller ones."""
        rows: list[tuple[str, int, int, float]] = []
        for choice in self.net.space.choices:
            weights = [favour**i for i in range(len(choice.values))]
            there = 0.7 if choice.parent else 1.0
            for i, value in enumerate(choice.values):
                passes = int(4000 * there * weights[i] / sum(weights))
                rows.append((choice.name, value, passes, 20 * there * sum(weights[i:]) / sum(weights)))
        names, values, passes_R, exposure = zip(*rows, strict=True)
        edges = np.linspace(self.low, self.high, 101)
        drawn = [self.net.cost_of(self.net.space.sample(self.rng)).macs for _ in range(400)]
        np.savez(
            run.path / "exposure.npz",
            names=np.array(names),
            values=np.array(values),
            passes=np.array(passes_R),
            exposure=np.array(exposure),
            steps=np.int64(4000),
            lr_sum=np.float64(20.0),
            macs_edges=edges,
            macs_passes=10 * np.histogram(drawn, bins=edges)[0],
        )

    def forgetting(self, run: RunDirectory, probes: Sequence[Architecture], offset: float, epochs: int = 18) -> None:
        lines = []
        for epoch in range(1, epochs + 1):
            for arch in probes:
                top1 = self.top1(arch, offset - 30 * math.exp(-epoch / 4)) - abs(self.rng.gauss(0, 1.5))
                cost = self.net.cost_of(arch)
                line = {"step": 625 * epoch, "epoch": float(epoch), "probe": str(arch), "macs": cost.macs, "top1": top1}
                lines.append(line | {"loss": 1.0, "images": 8000})
        write_lines(run.path / "forgetting.jsonl", lines)

    def interference(self, run: RunDirectory, probes: Sequence[Architecture]) -> None:
        size = range(len(probes))
        macs = [self.net.cost_of(arch).macs for arch in probes]

        def matrix(value: Callable[[int, int], float]) -> list[list[float]]:
            return [[round(value(i, j), 4) for j in size] for i in size]

        far = [[abs(math.log(macs[i] / macs[j])) for j in size] for i in size]
        found = {
            "step": 10000,
            "probes": [str(arch) for arch in probes],
            "macs": macs,
            "labels": [f"{value / 1e6:.1f} M" for value in macs],
            "seed": 0,
            "batches": 32,
            "batch_size": 64,
            "gradient": {
                "agreement": matrix(lambda i, j: 0.9 - 0.5 * far[i][j] + self.rng.gauss(0, 0.05)),
                "control": [0.6 + self.rng.gauss(0, 0.05) for _ in size],
                "conflict": matrix(lambda i, j: min(1.0, 0.05 + 0.2 * far[i][j])),
                "layers": {},
            },
            "transfer": {
                "lr": 0.01,
                "z": matrix(lambda i, j: 0.01),
                "r": matrix(lambda i, j: 1.0 if i == j else 0.7 - 0.9 * far[i][j] + self.rng.gauss(0, 0.1)),
            },
            "bn_shift": {"layers": {}, "mean": matrix(lambda i, j: 0.0 if i == j else 0.02 + 0.1 * far[i][j])},
            "statistics": {"top1_supernet": [60.0] * len(probes), "top1_recalibrated": [70.0] * len(probes)},
        }
        (run.path / "interference.json").write_bytes(to_json(found))

    def everything(
        self, run: RunDirectory, probes: Sequence[Architecture], offset: float = 0.0, *, favour: float = 1.0
    ) -> None:
        self.exposure(run, favour=favour)
        self.forgetting(run, probes, offset)
        self.interference(run, probes)

    def study(
        self,
        path: Path,
        runs: Sequence[Mapping[str, Any]],
        *,
        name: str,
        question: str = "",
        conclusion: Mapping[str, Any] | None = None,
        buckets_m: Sequence[float] = (),
        half_m: float | None = None,
    ) -> None:
        """The files beside runs/, for runs that are there: name, arm, seed, factors, results, minutes."""
        arms = list(dict.fromkeys(run["arm"] for run in runs))
        plan = [{key: run[key] for key in ("name", "arm", "seed", "factors")} for run in runs]
        study = {
            "name": name,
            "about": "Synthetic numbers.",
            "question": question,
            "seeds": sorted({run["seed"] for run in runs}),
            "scale": 0.03,
            "arms": [{"name": arm, "about": f"What {arm} is."} for arm in arms],
            "runs": plan,
            "evaluate": {
                "split": "test",
                "buckets_m": list(buckets_m),
                "half_m": half_m,
                "per_bucket": 1,
                "probes": [],
            },
            "provenance": PROVENANCE,
        }
        (path / "study.json").write_bytes(to_json(study))
        named = [{key: run[key] for key in ("arm", "seed", "factors")} | {"run": run["name"]} for run in runs]
        pairs = list(zip(runs, named, strict=True))
        results = [a_result(**line, **of).to_json() for run, of in pairs for line in run["results"]]
        write_lines(path / "results.jsonl", results)
        times = [
            a_finished(train_seconds=60 * run["minutes"], beside=2, passes=16.0, **of).to_json() for run, of in pairs
        ]
        write_lines(path / "times.jsonl", times)
        if conclusion is not None:
            (path / "conclusion.json").write_bytes(to_json(conclusion))

    def baseline(self, path: Path, *, seeds: Sequence[int] = (0, 1, 2), per_bucket: int = 12) -> None:
        """Strategies side by side with everything recorded."""
        buckets = make_buckets(self.net.cost)
        drawn = draw_population(self.net.cost, buckets, per_bucket, seed=0)
        runs, probes = [], self.probes(4)
        for seed in seeds:
            for arm, offset in ARMS.items():
                minutes = {"ps-released": 58.0, "ps": 57.0, "rss": 30.0, "rss-short": 9.5}[arm] + self.rng.random()
                run = self.run(path / "runs" / f"{arm}-seed{seed}", recipe=arm, seed=seed, minutes=minutes)
                self.everything(run, probes, offset, favour=2.0 if arm.startswith("ps") else 1.0)
                shift = offset + self.rng.gauss(0, 0.4)
                lines = [self.line(a, shift, bucket=b.centre / 1e6, probe=False) for b, a in drawn]
                factors = {"strategy": arm, "match": "passes"}
                planned = {"name": run.path.name, "arm": arm, "seed": seed, "factors": factors, "minutes": minutes}
                runs.append(planned | {"results": lines})
        comparisons = [comparison("rss", "ps", 2.03, 1.41, 2.6), comparison("rss", "ps-released", 9.1, 8.3, 9.7)]
        comparisons += [comparison("rss-short", "ps", -1.4, -2.4, 0.2), comparison("ps", "ps-b", 0.1, -0.2, 0.3)]
        sentence = "RSS is better than faithful Progressive Shrinking by 2.0 points (95% interval 1.4 to 2.6, 3 seeds)."
        self.study(
            path,
            runs,
            name="baseline",
            question="Is random subnet sampling as good as progressive shrinking, and was the paper's baseline whole?",
            conclusion={"sentence": sentence, "verdict": "better", "comparisons": comparisons},
            buckets_m=[bucket.centre / 1e6 for bucket in buckets],
            half_m=buckets[0].half / 1e6,
        )

    def solo(self, path: Path, *, seeds: Sequence[int] = (0, 1, 2)) -> None:
        """Probes alone and inside."""
        probes = self.probes(4)
        runs = []
        for seed in seeds:
            inside = [self.line(arch, 0.0, bucket=None, probe=True) for arch in probes]
            run = self.run(path / "runs" / f"supernet-seed{seed}", seed=seed)
            runs.append(planned(run.path.name, "supernet", seed, {"match": "supernet"}, inside))
            for number, arch in enumerate(probes):
                for match, offset in (("exposure", -1.5), ("epochs", 2.0)):
                    arm = f"alone-{match}"
                    run = self.run(path / "runs" / f"{arm}-p{number}-seed{seed}", seed=seed, minutes=12)
                    lines = [self.line(arch, offset, bucket=None, probe=True)]
                    runs.append(planned(run.path.name, arm, seed, {"match": match, "probe": number}, lines))
        sentence = "Alone, at equal exposure, probes are not better: no net interference was found."
        self.study(path, runs, name="solo", conclusion={"sentence": sentence, "verdict": "help", "comparisons": []})

    def dose(self, path: Path, *, seeds: Sequence[int] = (0, 1, 2)) -> None:
        """Ever more subnets on the same weights."""
        probes = self.probes(0)
        runs = []
        doses: tuple[int | str, ...] = (1, 2, 4, 16, 64, "all")
        for seed in seeds:
            for step, dose in enumerate(doses):
                for number, arch in enumerate(probes):
                    run = self.run(path / "runs" / f"k-{dose}-p{number}-seed{seed}", seed=seed, minutes=12)
                    lines = [self.line(arch, -0.5 * step, bucket=None, probe=True)]
                    runs.append(planned(run.path.name, f"k-{dose}", seed, {"dose": dose, "probe": number}, lines))
        self.study(path, runs, name="dose")


def planned(name: str, arm: str, seed: int, factors: Mapping[str, Any], lines: Sequence[Any]) -> dict[str, Any]:
    named = {"name": name, "arm": arm, "seed": seed, "factors": dict(factors)}
    return named | {"results": list(lines), "minutes": 12.0}


def comparison(a: str, b: str, difference: float, low: float, high: float) -> dict[str, Any]:
    verdict = "better" if low > 0 else "equivalent" if max(-low, high) < 0.5 else "cannot tell"
    found = {"names": [a, b], "seeds": 3, "difference": difference, "low": low, "high": high, "sd": 0.3, "margin": 0.5}
    return found | {"p_difference": 0.01, "p_equivalence": 0.9, "verdict": verdict, "sentence": f"{a} against {b}."}


def paper_net() -> MobileNetV3:
    """The paper's geometry on CIFAR-10."""
    return MobileNetV3(MobileNetV3Settings.for_images(image_size=32, in_channels=3, num_classes=10), seed=0)


@pytest.fixture(scope="session")
def synthetic() -> Synthetic:
    """Writes runs and studies in the paper's geometry."""
    return Synthetic(paper_net())


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with three studies, all recorded: baseline (2 seeds), solo, dose."""
    path = tmp_path_factory.mktemp("studies")
    made = Synthetic(paper_net())
    made.baseline(path / "baseline", seeds=(0, 1), per_bucket=6)
    made.solo(path / "solo", seeds=(0, 1))
    made.dose(path / "dose", seeds=(0, 1))
    return path
