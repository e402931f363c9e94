"""Exposure: counted by hand, by the recorder and in closed form; kept in a file and across resuming."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.recipes import RECIPES
from trainonce.run.directory import RunDirectory
from trainonce.run.exposure import (
    Exposure,
    ExposureTable,
    jensen_shannon,
    rows_of,
    total_variation,
)
from trainonce.space import Architecture, Choice, SearchSpace
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

PAPER = MobileNetV3(MobileNetV3Settings(num_classes=2, width_mult=0.1)).space
SMALL = SearchSpace(
    (
        Choice(name="stage1.depth", values=(1, 2)),
        Choice(name="stage1.block1.width", values=(3, 4, 6)),
        Choice(name="stage1.block2.width", values=(3, 4, 6), parent="stage1.depth", allowed={2: (3, 4, 6)}),
    )
)


def row(space: SearchSpace, name: str, value: int) -> int:
    names, values = rows_of(space)
    return int(np.flatnonzero((names == name) & (values == value))[0])


def drawn(space: SearchSpace, name: str, values: set[int]) -> float:
    """How probable it is that a uniform draw has the choice at one of these values."""
    return sum(probability for found, probability in space.draws_of([name]) if found.get(name) in values)


def share_of_steps(space: SearchSpace, *, subnets: int = 1) -> np.ndarray[Any, Any]:
    """[R] The share of steps in which what each value adds is active: a draw of so many has it or a larger one."""
    rows = zip(*rows_of(space), strict=True)
    p = [drawn(space, name, {one for one in space[name].values if one >= value}) for name, value in rows]
    return np.asarray(1 - (1 - np.minimum(p, 1.0)) ** subnets)


class TestRecorder:
    def test_three_steps_by_hand(self) -> None:
        recorder = Exposure(SMALL, 0, 100)
        recorder.add([SMALL.parse("d1.w4")], [10], 0.5)
        recorder.add([SMALL.parse("d2.w3.w6"), SMALL.parse("d2.w6.w3")], [50.5, 100], 0.25)
        recorder.add([SMALL.parse("d1.w3")], [0], 2.0)
        table = recorder.table()
        found = {
            (name, value): (passes, exposure)
            for name, value, passes, exposure in zip(
                table.names, table.values, table.passes, table.exposure, strict=True
            )
        }
        assert found == {
            ("stage1.depth", 1): (2, 2.75),
            ("stage1.depth", 2): (2, 0.25),
            ("stage1.block1.width", 3): (2, 2.75),
            ("stage1.block1.width", 4): (1, 0.75),
            ("stage1.block1.width", 6): (1, 0.25),
            ("stage1.block2.width", 3): (1, 0.25),
            ("stage1.block2.width", 4): (0, 0.25),
            ("stage1.block2.width", 6): (1, 0.25),
        }
        assert (table.steps, table.lr_sum) == (3, 2.75)
        assert table.of("stage1.block1.width", 4) == 0.75
        assert np.flatnonzero(table.macs_passes).tolist() == [0, 10, 50, 99]
        with pytest.raises(UserError, match=r"no row for stage1.depth at 3"):
            table.of("stage1.depth", 3)

    @pytest.mark.parametrize("subnets", [1, 3])
    def test_a_long_draw_meets_the_closed_form(self, subnets: int) -> None:
        """Within five standard errors of 4,000 steps, for each of the 165 rows; and so do the passes."""
        recorder, rng, steps = Exposure(PAPER, 0, 1), random.Random(5), 4000
        for _ in range(steps):
            recorder.add([PAPER.sample(rng) for _ in range(subnets)], [], 0.5)
        p = share_of_steps(PAPER, subnets=subnets)
        error = np.sqrt(p * (1 - p) / steps)
        assert (np.abs(recorder.exposure / (0.5 * steps) - p) <= 5 * error + 1e-12).all()
        q = np.array([drawn(PAPER, name, {value}) for name, value in zip(*rows_of(PAPER), strict=True)])
        share = recorder.passes / (steps * subnets)
        assert (np.abs(share - q) <= 5 * np.sqrt(q * (1 - q) / (steps * subnets))).all()


class TestClosedForm:
    def test_the_papers_geometry(self) -> None:
        p = share_of_steps(PAPER)
        for name, value, expected in [
            ("stage2.depth", 2, 1),
            ("stage2.depth", 3, 2 / 3),
            ("stage2.depth", 4, 1 / 3),
            ("stage2.block1.expand_ratio", 6, 1 / 3),
            ("stage2.block1.kernel_size", 5, 2 / 3),
            ("stage2.block3.expand_ratio", 3, 2 / 3),
            ("stage2.block4.expand_ratio", 6, 1 / 9),
        ]:
            assert p[row(PAPER, name, value)] == pytest.approx(expected)

    def test_several_subnets(self) -> None:
        found = share_of_steps(PAPER, subnets=4)[row(PAPER, "stage2.block4.expand_ratio", 6)]
        assert found == pytest.approx(1 - (8 / 9) ** 4)

    def test_every_architecture_of_a_small_space(self) -> None:
        """The probability of each architecture by hand: a depth of 1 has 3, one of 2 has 9."""
        weights = {SMALL.parse(f"d1.w{a}"): 1 / 6 for a in (3, 4, 6)}
        weights |= {SMALL.parse(f"d2.w{a}.w{b}"): 1 / 18 for a in (3, 4, 6) for b in (3, 4, 6)}
        names, values = rows_of(SMALL)
        by_hand = [
            sum(w for arch, w in weights.items() if arch.get(name, -1) >= value)
            for name, value in zip(names, values, strict=True)
        ]
        assert share_of_steps(SMALL) == pytest.approx(by_hand)

    def test_parts_of_a_space(self) -> None:
        space = PAPER.couple("expand_ratio", "depth").restrict({"stage1.depth": (3,)})
        p = share_of_steps(space)
        assert p[row(space, "stage1.block1.expand_ratio", 4)] == pytest.approx(1)
        assert p[row(space, "stage1.block1.expand_ratio", 6)] == 0
        assert p[row(space, "stage2.block4.expand_ratio", 6)] == pytest.approx(1 / 3)


class TestDivergences:
    def test_known_values(self) -> None:
        assert total_variation([1, 3], [2, 6]) == jensen_shannon([1, 3], [2, 6]) == 0
        assert total_variation([1, 0], [0, 5]) == jensen_shannon([1, 0], [0, 5]) == 1
        assert total_variation([1, 1, 0], [0, 1, 1]) == pytest.approx(0.5)
        # of (1, 0) and (1/2, 1/2): the middle is (3/4, 1/4)
        by_hand = 0.5 * np.log2(4 / 3) + 0.5 * (0.5 * np.log2(2 / 3) + 0.5 * np.log2(2))
        assert jensen_shannon([2, 0], [1, 1]) == pytest.approx(by_hand)

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
    def test_bounds_and_symmetry(self, pairs: list[tuple[int, int]]) -> None:
        p, q = [a + 1 for a, _ in pairs], [b + (i == 0) for i, (_, b) in enumerate(pairs)]
        for measure in (total_variation, jensen_shannon):
            assert -1e-12 <= measure(p, q) <= 1 + 1e-12
            assert measure(p, q) == pytest.approx(measure(q, p))

    @pytest.mark.parametrize(("p", "q"), [([1, 2], [1]), ([0, 0], [1, 1]), ([1, -1], [1, 1]), ([], [])])
    def test_refusals(self, p: list[float], q: list[float]) -> None:
        with pytest.raises(UserError, match="two distributions need"):
            total_variation(p, q)


class TestFile:
    @staticmethod
    def table() -> ExposureTable:
        recorder = Exposure(SMALL, 5, 10)
        recorder.add([SMALL.largest()], [7], 0.1)
        return recorder.table()

    def test_there_and_back(self, tmp_path: Path) -> None:
        content = self.table().to_npz()
        assert content == self.table().to_npz()
        (tmp_path / "exposure.npz").write_bytes(content)
        read = ExposureTable.read(tmp_path / "exposure.npz")
        assert read.to_npz() == content
        with np.load(tmp_path / "exposure.npz", allow_pickle=False) as file:
            assert file["names"].dtype.kind == "U"
            assert {name: file[name].dtype.str for name in file if name != "names"} == {
                "values": "<i8",
                "passes": "<i8",
                "exposure": "<f8",
                "steps": "<i8",
                "lr_sum": "<f8",
                "macs_edges": "<f8",
                "macs_passes": "<i8",
            }

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="trained without recording its exposure"):
            ExposureTable.read(tmp_path / "exposure.npz")

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_damage_is_a_sentence(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        damaged: Callable[[bytes], st.SearchStrategy[bytes]],
        data: st.DataObject,
    ) -> None:
        path = tmp_path_factory.mktemp("damage") / "exposure.npz"
        path.write_bytes(data.draw(damaged(self.table().to_npz())))
        with suppress(UserError):
            ExposureTable.read(path)


class TestInTraining:
    @pytest.mark.parametrize("name", ["rss", "sandwich", "ps"])
    def test_what_is_recorded_is_what_the_network_was_called_with(
        self, make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], tmp_path: Path, name: str
    ) -> None:
        net, run = make_net(), RunDirectory(tmp_path)
        called: list[Architecture] = []
        net.register_forward_pre_hook(lambda _, arguments: called.append(arguments[1]))
        recipe = RECIPES[name].with_batch_size(8)
        assert train_supernet(
            net, recipe.scaled(2 / recipe.epochs), make_data(), run, settings=TrainSettings(log_every=1)
        )
        table, lines = run.exposure(), run.metrics()
        assert table.steps == lines[-1].step == len(lines)
        assert table.lr_sum == pytest.approx(sum(line.lr for line in lines))
        sizes = {phase.name: len(phase.subnets) for phase in recipe.phases}
        later = iter(called)
        steps = [[next(later) for _ in range(sizes[line.phase])] for line in lines]
        assert not list(later)
        for i, (choice, value) in enumerate(zip(table.names, table.values, strict=True)):
            assert table.passes[i] == sum(arch.get(choice) == value for arch in called)
            active = (any(arch.get(choice, -1) >= value for arch in step) for step in steps)
            expected = sum(line.lr for line, there in zip(lines, active, strict=True) if there)
            assert table.exposure[i] == pytest.approx(expected)
        macs = [net.cost_of(arch).macs for arch in called]
        assert table.macs_edges[0] == net.cost_of(net.space.smallest()).macs
        assert table.macs_edges[-1] == net.cost_of(net.space.largest()).macs
        assert table.macs_passes.tolist() == np.histogram(macs, table.macs_edges)[0].tolist()

    @pytest.mark.parametrize("stop", [1, 3, 4, 7])
    def test_a_resumed_run_has_the_same_bytes(
        self, make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], tmp_path: Path, stop: int
    ) -> None:
        recipe, data = RECIPES["sandwich"].with_batch_size(8), make_data()
        recipe = recipe.scaled(2 / recipe.epochs)
        straight, resumed = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "resumed")
        assert train_supernet(make_net(), recipe, data, straight)
        asked = iter(range(1, 100))
        assert not train_supernet(make_net(), recipe, data, resumed, should_stop=lambda: next(asked) == stop)
        assert resumed.exposure().steps == stop
        assert train_supernet(make_net(), recipe, data, resumed, resume=True)
        assert resumed.exposure_file.read_bytes() == straight.exposure_file.read_bytes()

    def test_seconds_go_on(
        self, make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], tmp_path: Path
    ) -> None:
        recipe, data, run = RECIPES["rss"].with_batch_size(8), make_data(), RunDirectory(tmp_path)
        recipe = recipe.scaled(2 / recipe.epochs)
        asked = iter(range(1, 100))
        settings = TrainSettings(log_every=1)
        train_supernet(make_net(), recipe, data, run, settings=settings, should_stop=lambda: next(asked) == 4)
        train_supernet(make_net(), recipe, data, run, settings=settings, resume=True)
        seconds = [line.seconds or 0.0 for line in run.metrics()]
        assert seconds[0] > 0
        assert seconds == sorted(seconds)
