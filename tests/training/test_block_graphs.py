"""Steps whose blocks are captured form by form and replayed train what eager ones do, to the last bit."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from trainonce.data import DataSet
from trainonce.errors import RunError
from trainonce.models import MobileNetV3
from trainonce.nn import native
from trainonce.nn.lending import Lent
from trainonce.nn.precision import autocast
from trainonce.recipes import RECIPES, Colour, Crop, Flip, Phase, Recipe
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture, derived_rng
from trainonce.training.block_graphs import BlockGraphs
from trainonce.training.graphs import CudaRecorder, holds_one_subnet
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
AssertSame = Callable[[RunDirectory, RunDirectory], None]
SANDWICH = ("largest", "smallest", "uniform", "uniform")


def recipe_of(*phases: Phase, **fields: Any) -> Recipe:
    return Recipe(name="test", about="A test.", phases=phases, batch_size=8, weight_decay=1e-3, **fields)


def phase(*subnets: Any, **fields: Any) -> Phase:
    return Phase(**{"name": "test", "epochs": 1.5, "lr": 0.05, "subnets": subnets, **fields})


@pytest.fixture
def data(make_data: MakeData) -> DataSet:
    """Four batches of 8 an epoch."""
    return make_data(augmentation=(Crop(scale=(0.5, 1.0)), Flip(), Colour(brightness=0.1)), train=35)


@pytest.fixture
def torch_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside, the blocks run by what they run by on a GPU."""
    monkeypatch.setattr(native, "usable", lambda _: False)


class TestTraining:
    @pytest.mark.parametrize(
        ("recipe", "precision"),
        [
            pytest.param(recipe_of(phase("uniform")), "float32", id="move"),
            pytest.param(recipe_of(phase("uniform")), "bfloat16", id="bfloat16"),
            pytest.param(recipe_of(phase("uniform", clip_value=0.01), idle_weights="rest"), "float32", id="rest"),
            pytest.param(recipe_of(phase("uniform"), optimizer="adamw", ema=0.9), "float32", id="adamw"),
            pytest.param(
                recipe_of(phase("uniform"), optimizer="adamw", idle_weights="rest"), "float32", id="adamw, rest"
            ),
            pytest.param(recipe_of(phase("uniform"), optimizer="muon"), "float32", id="muon"),
            pytest.param(recipe_of(phase("fair", "fair", "fair", label_smoothing=0.1)), "float32", id="fair"),
            pytest.param(recipe_of(phase("smallest", "smallest", "largest")), "float32", id="a form twice in a step"),
            pytest.param(
                recipe_of(phase(*SANDWICH, target="largest", distillation="kl", dropout_largest_only=True)),
                "float32",
                id="sandwich",
            ),
            pytest.param(
                recipe_of(phase("largest", "best_up", "worst_up", target="largest", distillation="alpha")),
                "float32",
                id="trials",
            ),
            pytest.param(
                recipe_of(
                    phase("uniform", epochs=0.75, keep_largest={"kernel_size": 1, "depth": 1, "expand_ratio": 1}),
                    phase("uniform", "uniform", epochs=0.5, target="labels+teacher", sort_channels=True),
                    phase("uniform", epochs=0.5, target="labels+teacher", teacher="untrained"),
                    phase("uniform", epochs=0.75, hold="epoch"),
                    phase("stratified", epochs=0.5),
                ),
                "float32",
                id="phases",
            ),
        ],
    )
    @pytest.mark.usefixtures("torch_operators")
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
        for run, graphs in ((eager, False), (graphed, True)):
            settings = TrainSettings(log_every=3, precision=precision, cuda_graphs=graphs)
            net = make_net(dropout=0.3)
            train_supernet(net, recipe, data, run, settings=settings)
        assert_same(graphed, eager)
        (capture,) = captures
        assert all(recorder.replays for recorder in capture.recorders)
        assert max(len(recorder.pieces) for recorder in capture.recorders) <= 2 * 2 * 3, "of kernel sizes and ratios"
        assert all(block.replayed is None for block in net.active_blocks(net.space.largest()))

    def test_resumed(
        self, make_net: MakeNet, data: DataSet, tmp_path: Path, captures: list[Any], assert_same: AssertSame
    ) -> None:
        eager, graphed = RunDirectory(tmp_path / "eager"), RunDirectory(tmp_path / "graphed")
        recipe, graphs = recipe_of(phase("uniform", "uniform")), TrainSettings(log_every=3)
        train_supernet(make_net(), recipe, data, eager, settings=TrainSettings(log_every=3, cuda_graphs=False))
        asked = iter(range(1, 99))
        train_supernet(make_net(), recipe, data, graphed, settings=graphs, should_stop=lambda: next(asked) == 3)
        train_supernet(make_net(seed=7), recipe, data, graphed, settings=graphs, resume=True)
        assert_same(graphed, eager)
        assert [sum(r.replays for r in capture.recorders) > 0 for capture in captures] == [True, True]

    def test_refused(
        self, make_net: MakeNet, data: DataSet, tmp_path: Path, rerun_capture: Any, monkeypatch: Any
    ) -> None:
        class Refusing(rerun_capture):  # type: ignore[misc]
            def recorder(self) -> Any:
                recorder = super().recorder()
                recorder.refuses = "operation not permitted\nand more"
                return recorder

        monkeypatch.setattr("trainonce.training.loop.capture_for", Refusing)
        with pytest.raises(
            RunError, match=r"a block could not be captured .*not permitted\); --no-cuda-graphs does without$"
        ):
            train_supernet(make_net(), recipe_of(phase("uniform")), data, RunDirectory(tmp_path / "run"))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("subnets", [("uniform",), SANDWICH])
    def test_on_a_gpu(
        self, make_net: MakeNet, data: DataSet, tmp_path: Path, precision: Literal["float32", "bfloat16"], subnets: Any
    ) -> None:
        """Up to the order of atomic additions there."""
        target = "largest" if "largest" in subnets else "labels"
        states: list[dict[str, Tensor]] = []
        for graphs in (False, True):
            net, run = make_net(dropout=0.3), RunDirectory(tmp_path / str(graphs))
            settings = TrainSettings(device="cuda", precision=precision, cuda_graphs=graphs)
            train_supernet(net, recipe_of(phase(*subnets, target=target)), data, run, settings=settings)
            states.append({name: tensor.cpu() for name, tensor in net.state_dict().items()})
        rtol, atol = (1e-3, 1e-4) if precision == "float32" else (0.1, 0.02)
        for name, tensor in states[0].items():
            torch.testing.assert_close(states[1][name], tensor, rtol=rtol, atol=atol, msg=name)


def refuse_masks(_x: Tensor, _p: float) -> Tensor:
    raise AssertionError("nothing was to be dropped")


class Pair:
    """Two equal networks, one that replays its blocks; both pass the same images, and must come to the same."""

    def __init__(self, make_net: MakeNet, rerun_capture: Any, **fields: Any) -> None:
        self.eager, self.net = make_net(**fields).train(), make_net(**fields).train()
        self.capture = rerun_capture(self.net)
        self.replays = BlockGraphs(self.net, self.capture).replays

    def replaying(self) -> AbstractContextManager[None]:
        return Lent([]).step(refuse_masks, self.replays)

    def step(
        self, archs: list[Architecture], *, batch: int = 4, seed: int = 0, trial: Architecture | None = None
    ) -> None:
        side = self.net.describe(archs[0]).resolution
        x_BCHW = torch.randn(batch, 1, side, side, generator=torch.Generator().manual_seed(seed))
        for net in (self.eager, self.net):
            net.zero_grad()
        with self.replaying():
            found, wanted = (self.passes(net, archs, x_BCHW, trial) for net in (self.net, self.eager))
        assert all(map(torch.equal, found, wanted))
        for (name, p), q in zip(self.net.named_parameters(), self.eager.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            assert p.grad is None or q.grad is None or torch.equal(p.grad, q.grad), name
        for (name, buffer), other in zip(self.net.named_buffers(), self.eager.buffers(), strict=True):
            assert torch.equal(buffer, other), name

    @staticmethod
    def passes(net: MobileNetV3, archs: list[Architecture], x_BCHW: Tensor, trial: Architecture | None) -> list[Tensor]:
        found = []
        for arch in archs:
            if trial is not None:
                with torch.no_grad():
                    found.append(net(x_BCHW, trial))
            found.append(net(x_BCHW, arch))
            torch.autograd.backward(found[-1].square().mean())
        return [logits_BK.detach() for logits_BK in found]

    def pieces(self) -> list[int]:
        return [len(recorder.pieces) for recorder in self.capture.recorders]


@pytest.fixture
def make_pair(make_net: MakeNet, rerun_capture: Any) -> Callable[..., Pair]:
    """Two equal networks without dropout: `make_pair(resolutions=(6, 8))`."""
    return partial(Pair, make_net, rerun_capture, dropout=0.0)


MakePair = Callable[..., Pair]


class TestPasses:
    def test_in_any_order(self, make_pair: MakePair) -> None:
        """Forms are met, and met again, in an order of chance, one to three in a step, with trials in between."""
        pair, rng = make_pair(), random.Random(0)
        archs = [pair.net.space.sample(derived_rng(0, number)) for number in range(6)]
        for number in range(15):
            trial = rng.choice([None, *archs])
            pair.step([rng.choice(archs) for _ in range(rng.randint(1, 3))], seed=number, trial=trial)

    def test_parameters_that_are_changed_in_place_are_read_anew(self, make_net: MakeNet, make_pair: MakePair) -> None:
        pair = make_pair()
        arch = pair.net.space.smallest()
        pair.step([arch])
        before = pair.pieces()
        for net in (pair.eager, pair.net):
            net.load_state_dict(make_net(seed=5, dropout=0.0).state_dict())
            net.sort_channels(net.space)
        pair.step([arch, arch])
        assert pair.pieces() == before

    def test_other_images_are_other_forms(self, make_pair: MakePair) -> None:
        pair = make_pair(resolutions=(6, 8))
        arch = pair.net.space.smallest()
        low, high = ({**arch, "resolution": side} for side in (6, 8))
        for batch, at in ((4, low), (3, low), (4, high), (4, low)):
            pair.step([pair.net.space.check(at)], batch=batch)
        assert pair.pieces()[0] == 3 * 2, "forward and backward, of three sizes"

    def test_a_form_that_is_used_first_in_a_trial(self, make_pair: MakePair) -> None:
        pair = make_pair()
        pair.step([pair.net.space.smallest()], trial=pair.net.space.largest())
        pair.step([pair.net.space.largest()])

    def test_passes_that_interleave_are_refused(self, make_pair: MakePair) -> None:
        """Torch would not notice: a replay does not count as writing to a tensor."""
        pair = make_pair()
        block, *_ = pair.replays.values()
        smallest, largest = (
            pair.net.describe(a).blocks[0] for a in (pair.net.space.smallest(), pair.net.space.largest())
        )
        x_BCHW = torch.randn(4, smallest.in_channels, 8, 8).requires_grad_()
        first = block(x_BCHW, smallest)
        block(x_BCHW, largest)
        with pytest.raises(AssertionError, match="another pass went through this block"):
            torch.autograd.backward(first.sum())

    def test_only_inside_and_in_training_mode(self, make_pair: MakePair) -> None:
        pair = make_pair()
        net, x_BCHW = pair.net, torch.randn(4, 1, 8, 8)
        net(x_BCHW, net.space.smallest())
        with pair.replaying(), torch.no_grad():
            net.eval()(x_BCHW, net.space.smallest())
        assert not any(pair.pieces())


def test_a_recorded_form_has_left_no_trace(make_pair: MakePair) -> None:
    """Recording readies the device by doing the work: statistics and gradients are afterwards as they were."""
    pair = make_pair()
    block, *_ = pair.replays.values()
    before = {name: tensor.clone() for name, tensor in pair.net.state_dict().items()}
    block.gradients.all.fill_(3)
    spec = pair.net.describe(pair.net.space.smallest()).blocks[0]
    x_BCHW = torch.randn(4, spec.in_channels, 8, 8).requires_grad_()
    with autocast("float32", x_BCHW.device):
        block._record(x_BCHW, spec)
    assert [name for name, tensor in pair.net.state_dict().items() if not torch.equal(tensor, before[name])] == []
    assert bool((block.gradients.all == 3).all())
    assert all(parameter.grad is None for parameter in pair.net.parameters())


def test_the_stand_in_would_notice_what_is_used_too_late(make_pair: MakePair) -> None:
    """What a block gave is spoiled by the next replay of the same block, as one pool of memory may have it."""
    pair = make_pair()
    block, *_ = pair.replays.values()
    spec = pair.net.describe(pair.net.space.smallest()).blocks[0]
    x_BCHW = torch.randn(4, spec.in_channels, 8, 8).requires_grad_()
    first = block(x_BCHW, spec)
    kept = first.detach().clone()
    assert bool(kept.isfinite().all())
    block(x_BCHW[:2], spec)
    assert bool(first.isnan().all())


def test_phases_that_hold_one_subnet(make_net: MakeNet) -> None:
    space = make_net().space
    alone = {"kernel_size": 1, "depth": 1, "expand_ratio": 1}
    holds = [
        (phase("uniform"), False),
        (phase("uniform", hold="epoch"), True),
        (phase("largest"), True),
        (phase("smallest"), True),
        (phase("alternate"), False),
        (phase("alternate", hold="epoch"), True),
        (phase("uniform", keep_largest=alone), True),
        (phase("best_up", hold="epoch"), False),
        (phase("largest", "largest"), False),
        (phase("largest", target="labels+teacher"), False),
    ]
    assert [holds_one_subnet(given, given.subspace(space)) for given, _ in holds] == [wanted for _, wanted in holds]
    assert holds_one_subnet(RECIPES["largest"].phases[0], space)
    assert holds_one_subnet(RECIPES["ps"].phases[0], RECIPES["ps"].phases[0].subspace(space))


def test_a_largest_phase_is_captured_once(
    make_net: MakeNet, data: DataSet, tmp_path: Path, captures: list[Any], assert_same: AssertSame
) -> None:
    eager, graphed = RunDirectory(tmp_path / "eager"), RunDirectory(tmp_path / "graphed")
    for run, graphs in ((eager, False), (graphed, True)):
        settings = TrainSettings(log_every=3, cuda_graphs=graphs)
        train_supernet(make_net(dropout=0.3), recipe_of(phase("largest")), data, run, settings=settings)
    assert_same(graphed, eager)
    (capture,) = captures
    assert (capture.asides, capture.captures, capture.replays) == (1, 1, 5)


def test_the_order_in_which_cuda_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: each recorder has a pool, all graphs stay and can be replayed in any order."""
    said: list[str] = []

    class Stream:
        device, name = torch.device("cuda:0"), "side"

        def wait_stream(self, other: Any) -> None:
            said.append(f"{self.name} waits for {other.name}")

    class Main(Stream):
        name = "main"

    class Graph:
        made = 0

        def __init__(self) -> None:
            Graph.made += 1
            self.name = f"graph {Graph.made}"

        def replay(self) -> None:
            said.append(f"replay {self.name}")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        said.append(f"on {stream.name}")
        yield

    @contextmanager
    def graph(graph: Graph, pool: str, stream: Stream, *, capture_error_mode: str) -> Iterator[None]:
        said.append(f"capture {graph.name} in {pool} on {stream.name}, {capture_error_mode}")
        yield

    pools = iter(("pool A", "pool B"))
    fakes = {"CUDAGraph": Graph, "stream": on, "graph": graph, "graph_pool_handle": lambda: next(pools)}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: Main())

    stream: Any = Stream()
    one, other = CudaRecorder(stream), CudaRecorder(stream)
    assert one.aside(lambda: 7) == 7
    assert said == ["side waits for main", "on side", "main waits for side"]
    said.clear()
    made = torch.zeros(1)
    (static,), first = one.record(lambda: [made])
    assert static is made
    second, third = (recorder.record(lambda: [made])[1] for recorder in (one, other))
    for again in (second, third, first):
        again()
    assert said == [
        "capture graph 1 in pool A on side, thread_local",
        "capture graph 2 in pool A on side, thread_local",
        "capture graph 3 in pool B on side, thread_local",
        "replay graph 2",
        "replay graph 3",
        "replay graph 1",
    ]
