"""Steps that are captured and replayed train what eager ones do, to the last bit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from trainonce.data import DataSet
from trainonce.models import MobileNetV3
from trainonce.recipes import Colour, Crop, Flip, Phase, Recipe
from trainonce.run.directory import RunDirectory
from trainonce.training import loop as train
from trainonce.training.graphs import CudaCapture
from trainonce.training.loop import LOOK_EVERY, train_supernet
from trainonce.training.settings import TrainSettings
from trainonce.training.step_sums import not_finite

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
AssertSame = Callable[[RunDirectory, RunDirectory], None]
HELD = Phase(name="held", epochs=4.5, lr=0.05, hold="epoch")
EAGER = TrainSettings(log_every=3, cuda_graphs=False)
GRAPHS = TrainSettings(log_every=3)


def recipe_of(*phases: Phase, **fields: Any) -> Recipe:
    return Recipe(name="test", about="A test.", phases=phases, batch_size=8, weight_decay=1e-3, **fields)


@pytest.fixture
def data(make_data: MakeData) -> DataSet:
    """Four batches of 8 an epoch."""
    return make_data(augmentation=(Crop(scale=(0.5, 1.0)), Flip(), Colour(brightness=0.1)), train=35)


class TestSameAsEager:
    @pytest.mark.parametrize(
        "recipe",
        [
            pytest.param(recipe_of(HELD), id="move"),
            pytest.param(recipe_of(HELD, idle_weights="rest"), id="rest"),
            pytest.param(recipe_of(HELD, optimizer="adamw", ema=0.9), id="adamw"),
            pytest.param(recipe_of(HELD, optimizer="adamw", idle_weights="rest"), id="adamw, rest"),
            pytest.param(recipe_of(HELD, optimizer="muon"), id="muon"),
            pytest.param(recipe_of(HELD.model_copy(update={"label_smoothing": 0.1, "clip_value": 0.01})), id="clip"),
            pytest.param(recipe_of(HELD.model_copy(update={"dropout_largest_only": True})), id="no dropout"),
            pytest.param(
                recipe_of(
                    HELD.model_copy(update={"epochs": 1.25}),
                    Phase(name="between", epochs=0.75, subnets=("largest", "uniform"), target="largest"),
                    HELD.model_copy(update={"epochs": 1.5, "sort_channels": True}),
                ),
                id="phases",
            ),
        ],
    )
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_weights_momenta_and_metrics(
        self,
        make_net: MakeNet,
        data: DataSet,
        tmp_path: Path,
        captures: list[Any],
        assert_same: AssertSame,
        recipe: Recipe,
        precision: Literal["float32", "bfloat16"],
    ) -> None:
        eager, graphed = RunDirectory(tmp_path / "eager"), RunDirectory(tmp_path / "graphed")
        for run, settings in ((eager, EAGER), (graphed, GRAPHS)):
            chosen = settings.model_copy(update={"precision": precision})
            train_supernet(make_net(dropout=0.3), recipe, data, run, settings=chosen)
        assert_same(graphed, eager)
        (capture,) = captures
        steps = [5, 6] if len(recipe.phases) > 1 else [18]
        epochs = sum(-(-count // 4) for count in steps)
        captured = sum(-(-(count - 1) // 4) for count in steps)  # an epoch of one step has nothing to replay
        assert (capture.asides, capture.captures, capture.replays) == (epochs, captured, sum(steps) - epochs)

    @pytest.mark.parametrize("step", [1, 2, 3, 4, 6])
    def test_resumed(
        self,
        make_net: MakeNet,
        data: DataSet,
        tmp_path: Path,
        captures: list[Any],
        assert_same: AssertSame,
        step: int,
    ) -> None:
        """Stopped after the eager step of an epoch, after the captured one, in the middle, and between epochs."""
        eager, graphed = RunDirectory(tmp_path / "eager"), RunDirectory(tmp_path / "graphed")
        recipe = recipe_of(HELD.model_copy(update={"epochs": 2.5}))
        train_supernet(make_net(), recipe, data, eager, settings=EAGER)
        asked = iter(range(1, 99))
        train_supernet(make_net(), recipe, data, graphed, settings=GRAPHS, should_stop=lambda: next(asked) == step)
        train_supernet(make_net(seed=7), recipe, data, graphed, settings=GRAPHS, resume=True)
        assert_same(graphed, eager)
        assert [capture.replays > 0 for capture in captures] == [step > 1, True]

    def test_where_looks_are_seldom(
        self,
        make_net: MakeNet,
        data: DataSet,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        captures: list[Any],
        assert_same: AssertSame,
    ) -> None:
        """Losses that wait to be looked at are not overwritten by replays."""
        monkeypatch.setattr(train, "_look_every", lambda _: LOOK_EVERY)
        eager, graphed = RunDirectory(tmp_path / "eager"), RunDirectory(tmp_path / "graphed")
        seen: list[list[float]] = [[], []]
        for run, settings, losses in zip((eager, graphed), (EAGER, GRAPHS), seen, strict=True):

            def note(records: Any, losses: list[float] = losses) -> str | None:
                losses += [float(record.losses_S) for record in records]
                return not_finite(records)

            monkeypatch.setattr("trainonce.training.loop.not_finite", note)
            train_supernet(make_net(), recipe_of(HELD), data, run, settings=settings)
        assert_same(graphed, eager)
        assert len(captures) == 1
        assert seen[0] == seen[1]
        assert len(set(seen[0])) == 18

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_on_a_gpu(
        self, make_net: MakeNet, data: DataSet, tmp_path: Path, precision: Literal["float32", "bfloat16"]
    ) -> None:
        """Up to the order of atomic additions there."""
        states: list[dict[str, Tensor]] = []
        for graphs in (False, True):
            net, run = make_net(dropout=0.3), RunDirectory(tmp_path / str(graphs))
            settings = TrainSettings(device="cuda", precision=precision, cuda_graphs=graphs)
            state = torch.cuda.get_rng_state()
            train_supernet(net, recipe_of(HELD), data, run, settings=settings)
            assert torch.equal(torch.cuda.get_rng_state(), state)
            states.append({name: tensor.cpu() for name, tensor in net.state_dict().items()})
        rtol, atol = (1e-3, 1e-4) if precision == "float32" else (0.1, 0.02)
        for name, tensor in states[0].items():
            torch.testing.assert_close(states[1][name], tensor, rtol=rtol, atol=atol, msg=name)


def test_the_order_in_which_cuda_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: streams wait for each other, captures share pool and stream, the graph before goes last."""
    said: list[str] = []

    class Stream:
        def __init__(self, device: torch.device, name: str = "side") -> None:
            self.device, self.name = device, name

        def wait_stream(self, other: "Stream") -> None:
            said.append(f"{self.name} waits for {other.name}")

    class Graph:
        made = 0

        def __init__(self) -> None:
            Graph.made += 1
            self.name = f"graph {Graph.made}"

        def replay(self) -> None:
            said.append(f"replay {self.name}")

        def __del__(self) -> None:
            said.append(f"{self.name} goes")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        said.append(f"on {stream.name}")
        yield

    @contextmanager
    def graph(graph: Graph, pool: str, stream: Stream, *, capture_error_mode: str) -> Iterator[None]:
        said.append(f"capture {graph.name} in {pool} on {stream.name}, {capture_error_mode}")
        yield

    fakes = {"Stream": Stream, "CUDAGraph": Graph, "stream": on, "graph": graph, "graph_pool_handle": lambda: "pool"}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "main"))

    capture, found = CudaCapture(torch.device("cuda:0")), (torch.zeros(1), torch.zeros(()))
    assert capture.aside(lambda: found) is found
    assert said == ["side waits for main", "on side", "main waits for side"]
    said.clear()
    _, again = capture.capture(lambda: [*found])
    again()
    del again
    _, again = capture.capture(lambda: [*found])
    again()
    assert said == [
        "capture graph 1 in pool on side, thread_local",
        "replay graph 1",
        "capture graph 2 in pool on side, thread_local",
        "graph 1 goes",
        "replay graph 2",
    ]
