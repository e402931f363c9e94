"""Several processes train what one trains, talk once a step, and stop, fail and go on together."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.support.lines import timeless
from torch import Tensor

import trainonce
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory

State = dict[str, Tensor]
HELPER = Path(__file__).parents[1] / "support" / "rank_runs.py"
ENVIRONMENT = os.environ | {
    "COLUMNS": "200",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(trainonce.__file__).parents[1]),
    # One process would take the native kernels, which do not synchronise batch norm, and round otherwise.
    "TRAINONCE_NATIVE": "0",
}
ANSWER_S = 60


@dataclass(frozen=True)
class Outcome:
    """What the ranks of a job came to: exit codes, what each told, the weights each holds."""

    codes: list[int | None]
    hung: list[int]
    told: list[dict[str, Any]]
    states: list[State]
    run: RunDirectory


class Helper:
    """The process that forks ranks, and a folder for each job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs = 0
        self.process = subprocess.Popen(
            [sys.executable, str(HELPER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def __call__(self, *, ranks: int, after: RunDirectory | None = None, **fields: Any) -> Outcome:
        """Train in so many processes, going on from a copy of another job's run where there is one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.jobs += 1
        folder = self.folder / str(self.jobs)
        folder.mkdir()
        if after is not None:
            shutil.copytree(after.path, folder / "run")
            fields["resume"] = True
        job = {"recipe": "spos", "batch": 8, "epochs": 1, "ranks": ranks, **fields, "folder": str(folder)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        files = [folder / f"rank-{rank}.json" for rank in range(ranks)]
        return Outcome(
            codes=answer["codes"],
            hung=answer["hung"],
            told=[json.loads(file.read_text()) for file in files if file.exists()],
            states=[load_file(file.with_suffix(".safetensors")) for file in files if file.exists()],
            run=RunDirectory(folder / "run"),
        )

    def all_well(self, *, ranks: int, **fields: Any) -> Outcome:
        outcome = self(ranks=ranks, **fields)
        assert outcome.codes == [0] * ranks
        assert [told.get("error") for told in outcome.told] == [None] * ranks
        return outcome


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helper]:
    helper = Helper(tmp_path_factory.mktemp("ranks"))
    yield helper
    assert helper.process.stdin is not None
    helper.process.stdin.close()
    assert helper.process.wait(timeout=ANSWER_S) == 0
    assert helper.process.stdout is not None
    helper.process.stdout.close()


def fresh() -> State:
    geometry = MobileNetV3Settings(
        num_classes=3,
        in_channels=1,
        resolutions=(8,),
        width_mult=0.25,
        depths=(1, 2),
        kernel_sizes=(3, 5),
        strides=(1, 2, 1, 1, 1),
        stem_stride=1,
    )
    return MobileNetV3(geometry).state_dict()


def distance(one: State, other: State, *, of: Callable[[str], bool]) -> float:
    """How far two states lie from each other over the tensors of these names."""
    assert one.keys() == other.keys()
    chosen = [k for k in one if of(k) and one[k].is_floating_point()]
    return float(torch.stack([(one[k].double() - other[k].double()).square().sum() for k in chosen]).sum().sqrt())


def is_weight(name: str) -> bool:
    return "running" not in name


def is_statistic(name: str) -> bool:
    return "running" in name


def trained(state: State) -> float:
    """How far training moved the weights of the fixed layers: the blocks' channels may also have been sorted."""
    return distance(state, fresh(), of=lambda name: is_weight(name) and not name.startswith("blocks"))


def assert_close(found: State, expected: State) -> None:
    """Equal but for rounding: the same numbers to 1e-5, a thousandth of the way that training went."""
    assert trained(expected) > 0.002
    assert distance(found, expected, of=is_weight) < 1e-3 * trained(expected)
    assert distance(found, expected, of=is_statistic) < 1e-5 * distance(expected, fresh(), of=is_statistic)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert [k for k, v in found.items() if not torch.equal(v, expected[k])] == []


def bytes_of(run: RunDirectory) -> dict[str, bytes]:
    """The newest checkpoint's tensors and sums, the exposure, and the metrics; but for the seconds."""
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    files = {p.name: p.read_bytes() for p in newest.glob("*.safetensors")}
    state, *lines = (
        json.dumps({k: v for k, v in values.items() if k != "seconds"}).encode()
        for values in (json.loads((newest / "state.json").read_text()), *timeless(run.metrics()))
    )
    files |= {"name": newest.name.encode(), "state": state, "metrics": b"\n".join(lines)}
    return files | {"exposure": run.exposure_file.read_bytes()}


class TestSameAsOne:
    """With batch norm synchronised, any number of processes trains what one does."""

    @pytest.mark.parametrize(
        ("recipe", "ranks", "fields"),
        [
            ("rss", 3, {"lr_factor": 5.0, "batch": 10}),  # shards of 3, 3 and 4
            ("sandwich", 2, {}),  # learns from the largest; dropout on it alone; clipped gradients
            ("alphanet", 2, {"epochs": 0.5}),
            ("ps", 2, {}),  # six phases, a trained teacher, sorting
            ("ps-released", 2, {}),  # a teacher in training mode
            ("attentive", 2, {}),  # candidates chosen by their losses
            ("deps", 3, {"batch": 10}),
            ("rss", 3, {"lr_factor": 5.0, "batch": 10, "also": [{"kind": "cutmix"}]}),  # with images of other shards
            # as many as the hits of all shards say
            ("rss", 2, {"epochs": 3, "also": [{"kind": "cutmix", "once_known": 0.0}], "known": [2, 0.1]}),
        ],
    )
    def test_weights_and_metrics(self, train: Helper, recipe: str, ranks: int, fields: dict[str, Any]) -> None:
        job = {"recipe": recipe, **fields}
        one, several = train.all_well(ranks=1, **job), train.all_well(ranks=ranks, sync=True, **job)
        assert_close(several.states[0], one.states[0])
        for state in several.states[1:]:
            assert_equal(state, several.states[0])
        for line, expected in zip(several.run.metrics(), one.run.metrics(), strict=True):
            assert line.loss == pytest.approx(expected.loss, rel=1e-5)
            assert line.model_dump(exclude={"loss", "seconds"}) == expected.model_dump(exclude={"loss", "seconds"})
        assert several.run.exposure_file.read_bytes() == one.run.exposure_file.read_bytes()
        known = [checkpoint.load_latest(outcome.run.checkpoints) for outcome in (one, several)]
        shares = [found.state["known"]["share"] for found in known if found is not None]
        assert shares[0] == shares[1]
        assert (shares[0] > 0) == ("known" in fields)
        assert [told["reports"] for told in several.told] == [len(one.run.metrics())] + [0] * (ranks - 1)
        assert several.told[0]["layers"] == one.told[0]["layers"], "the layers are the network's own again"

    @pytest.mark.parametrize("sync", [True, False])
    def test_one_rank_looks_at_probes(self, train: Helper, sync: bool) -> None:
        """Rank 0 records; nothing else is different on any rank."""
        job: dict[str, Any] = {"recipe": "rss", "ranks": 2, "sync": sync}
        plain, looked = train.all_well(**job), train.all_well(**job, look=True)
        for found, expected in zip(looked.states, plain.states, strict=True):
            assert_equal(found, expected)
        assert len(looked.run.forgetting()) >= 2
        assert [told["talk"] for told in looked.told] == [told["talk"] for told in plain.told]

    def test_data_smaller_than_a_batch(self, train: Helper) -> None:
        job = {"recipe": "spos", "batch": 64, "epochs": 3}
        one = train.all_well(ranks=1, images=[7], **job)
        assert_close(train.all_well(ranks=3, images=[7] * 3, sync=True, **job).states[2], one.states[0])

    @pytest.mark.parametrize("ranks", [1, 2])
    def test_skipped_blocks_that_rest(self, train: Helper, ranks: int) -> None:
        """Parameters that no subnet of the last step used have no gradient, on any rank."""
        job = {"recipe": "spos", "epochs": 1.5, "lr_factor": 5.0, "idle": "rest"}
        one, several = train.all_well(ranks=1, **job), train.all_well(ranks=ranks, sync=True, **job)
        assert_close(several.states[0], one.states[0])
        idle = one.told[0]["idle"]
        assert idle
        assert all("block2" in name or "transforms" in name for name in idle)
        assert [told["idle"] for told in several.told] == [idle] * ranks

    def test_without_synchronised_batch_norm(self, train: Helper) -> None:
        """The weights are others than one process's, but the same on every rank, and rank 0's statistics count."""
        job = {"recipe": "ps", "epochs": 1, "batch": 10}
        one, several = train.all_well(ranks=1, **job), train.all_well(ranks=3, **job)
        assert distance(several.states[0], one.states[0], of=is_weight) > 0.3 * trained(one.states[0])
        for state in several.states[1:]:
            assert_equal(state, several.states[0])
        saved = checkpoint.load_latest(several.run.checkpoints)
        assert saved is not None
        assert_equal(saved.tensors["weights"], several.states[0])

    def test_the_first_weights_are_rank_0s(self, train: Helper) -> None:
        job = {"recipe": "spos", "epochs": 0.5}
        same, others = train.all_well(ranks=2, **job), train.all_well(ranks=2, seeds=[0, 5], **job)
        assert_equal(others.states[1], same.states[0])


class TestTalk:
    @pytest.mark.parametrize(("recipe", "subnets"), [("spos", 1), ("sandwich", 4), ("ps", 1)])
    def test_one_exchange_a_step(self, train: Helper, recipe: str, subnets: int) -> None:
        """Of the gradients there are, the losses, the hits and two requests; nothing else grows with the steps."""
        short, long = (train.all_well(ranks=2, recipe=recipe, epochs=epochs) for epochs in (1, 2.5))
        parameters = sum(v.numel() for k, v in fresh().items() if "running" not in k and v.is_floating_point())
        steps = [outcome.run.metrics()[-1].step for outcome in (short, long)]
        assert steps[1] >= steps[0] + 4
        for outcome, count in zip((short, long), steps, strict=True):
            for told in outcome.told:
                sizes = told["talk"]["all_reduce"]
                assert len(sizes) == count
                assert all(subnets + 3 < size <= parameters + subnets + 3 for size in sizes)
                if recipe != "spos":  # the largest network uses every weight, but for the kernels' transforms
                    assert sizes[0] > 0.99 * parameters
        for kind in ("all_gather", "broadcast"):
            assert len(short.told[0]["talk"][kind]) == len(long.told[0]["talk"][kind])

    def test_candidates_cost_one_small_exchange_each_time(self, train: Helper) -> None:
        outcome = train.all_well(ranks=2, recipe="attentive", epochs=0.5)
        sizes = outcome.told[0]["talk"]["all_reduce"]
        assert sorted(sizes)[:-2] == [3] * (len(sizes) - 2)
        assert len(sizes) > 2


class TestTogether:
    def test_a_loss_that_is_not_finite_on_one_rank(self, train: Helper) -> None:
        outcome = train(ranks=3, batch=9, epochs=3, plant=[1, 2], checkpoint_every_s=0.0)
        assert outcome.codes == [0, 0, 0]
        said = outcome.told[0]["error"]
        assert re.search(r"the loss is nan at step 2 \(phase 'random', .* stopped before the step\.", said)
        assert [(told["error"], told["kind"], told["everywhere"]) for told in outcome.told] == [
            (said, "RunError", True)
        ] * 3
        saved = checkpoint.load_latest(outcome.run.checkpoints)
        assert saved is not None
        assert saved.step == 2
        assert f"Last good checkpoint: {saved.path.name}" in said

    def test_one_rank_wants_to_stop(self, train: Helper) -> None:
        """All stop after the same step, and going on gives the bytes of a run that never stopped."""
        job = {"recipe": "ps", "epochs": 2, "log_every": 3}
        straight = train.all_well(ranks=2, **job)
        stopped = train.all_well(ranks=2, stop=[1, 3], **job)
        assert [told["finished"] for told in stopped.told] == [False, False]
        newest = checkpoint.newest(stopped.run.checkpoints)
        assert newest is not None
        assert newest.name == "step-000004"
        gone_on = train.all_well(ranks=2, after=stopped.run, **job)
        assert [told["finished"] for told in gone_on.told] == [True, True]
        assert bytes_of(gone_on.run) == bytes_of(straight.run)
        assert_equal(gone_on.states[1], straight.states[1])

    def test_ranks_that_look_seldom_stop_where_they_look(self, train: Helper) -> None:
        """As on a GPU: all at the same step."""
        stopped = train.all_well(ranks=2, epochs=4, stop=[1, 2], look_every=5)
        assert [told["finished"] for told in stopped.told] == [False, False]
        newest = checkpoint.newest(stopped.run.checkpoints)
        assert newest is not None
        assert newest.name == "step-000005"
        failed = train(ranks=2, epochs=4, plant=[0, 2], look_every=5)
        assert [told["everywhere"] for told in failed.told] == [True, True]
        assert all("at step 2 " in told["error"] for told in failed.told)
        assert all("stopped after the step. Last good checkpoint: step-000000" in t["error"] for t in failed.told)

    def test_another_number_of_ranks_goes_on(self, train: Helper) -> None:
        job = {"recipe": "ps", "sync": True}
        one = train.all_well(ranks=1, **job)
        for before, after in ((2, 1), (1, 2)):
            stopped = train.all_well(ranks=before, stop=[0, 4], **job)
            assert_close(train.all_well(ranks=after, after=stopped.run, **job).states[0], one.states[0])

    @pytest.mark.parametrize(
        "fields", [{"optimizer": "adamw", "ema": 0.9, "idle_weights": "rest"}, {"optimizer": "muon"}]
    )
    def test_other_optimizers_and_an_average_go_on_as_if_never_stopped(
        self, train: Helper, fields: dict[str, Any]
    ) -> None:
        job = {"recipe": "ps", "epochs": 2, "sync": True, "fields": fields}
        whole = train.all_well(ranks=2, **job)
        for stop in (3, 4, 6):
            stopped = train.all_well(ranks=2, stop=[0, stop], **job)
            assert [told["finished"] for told in stopped.told] == [False, False]
            for state in train.all_well(ranks=2, after=stopped.run, **job).states:
                assert_equal(state, whole.states[0])

    def test_sigterm_to_one_rank_stops_and_saves_all(self, train: Helper) -> None:
        job = {"recipe": "rss", "epochs": 400, "pause_s": 0.005}
        outcome = train.all_well(ranks=2, signal=[1, signal.SIGTERM, 0.1], **job)
        assert [told["finished"] for told in outcome.told] == [False, False]
        saved = checkpoint.load_latest(outcome.run.checkpoints)
        assert saved is not None
        assert 0 < saved.step < 1600
        assert_equal(saved.tensors["weights"], outcome.states[0])

    def test_killed_ranks(self, train: Helper) -> None:
        """SIGKILL to one rank, at random moments: the other ends too, and the run goes on to the same bytes."""
        rng = random.Random(4)
        job: dict[str, Any] = {"recipe": "ps", "epochs": 4, "log_every": 3, "checkpoint_every_s": 0.0, "pause_s": 0.02}
        straight = train.all_well(ranks=2, **job)
        run, kills = None, 0
        for round_ in range(5):
            outcome = train(ranks=2, after=run, signal=[round_ % 2, signal.SIGKILL, rng.uniform(0, 0.08)], **job)
            run = outcome.run
            assert outcome.hung == []
            if -signal.SIGKILL in outcome.codes:
                kills += 1
                (told,) = outcome.told
                assert told["kind"] == "RunError"
                assert "another process of this run has ended or does not answer" in told["error"]
        assert kills >= 3
        assert run is not None
        assert bytes_of(train.all_well(ranks=2, after=run, **job).run) == bytes_of(straight.run)

    def test_ranks_stop_and_save_when_their_launcher_is_killed(self, train: Helper) -> None:
        outcome = train(ranks=2, launcher_killed=10, recipe="rss", epochs=4000, pause_s=0.005)
        assert outcome.hung == []
        assert [told.get("finished") for told in outcome.told] == [False, False]
        saved = checkpoint.load_latest(outcome.run.checkpoints)
        assert saved is not None
        assert 0 < saved.step < 16000

    def test_ranks_that_cannot_stop_end_soon_after_their_launcher(self, train: Helper) -> None:
        outcome = train(ranks=2, launcher_killed=10, recipe="rss", epochs=4000, pause_s=100)
        assert (outcome.hung, outcome.told) == ([], [])

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"batch": 5, "ranks": 3}, "a batch of 5 images leaves one of 3 processes with 1, and batch norm needs 2"),
            ({"images": [32, 31], "ranks": 2}, "process 1 has another data fingerprint than process 0"),
        ],
    )
    def test_refusals_are_everyones(self, train: Helper, fields: dict[str, Any], says: str) -> None:
        outcome = train(**fields)
        assert outcome.codes == [0] * fields["ranks"]
        for told in outcome.told:
            assert (told["kind"], told["everywhere"]) == ("UserError", True)
            assert says in told["error"]
            assert told["error"] == outcome.told[0]["error"]
        assert not outcome.run.config_file.exists()

    def test_what_rank_0_alone_refuses(self, train: Helper) -> None:
        done = train.all_well(ranks=1, epochs=0.25)
        outcome = train(ranks=2, after=done.run, seeds=[0, 0], recipe="rss")
        assert [told["kind"] for told in outcome.told] == ["UserError"] * 2
        assert all("is of another run: its recipe differs" in told["error"] for told in outcome.told)


class TestCommand:
    OPTIONS = ("--recipe", "spos", "--epochs", "1.5", "--batch-size", "8", "--width", "0.25", "--out", "run")

    @staticmethod
    def torchrun(*arguments: str, folder: Path) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.Popen(
            [*launcher, "-m", "trainonce", "train", *arguments],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @pytest.mark.long
    def test_torchrun_stops_saves_and_goes_on(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (460, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "tiny.npz", train_images=images, train_labels=np.arange(460) % 3)
        first = self.torchrun("tiny.npz", *self.OPTIONS, "--sync-bn", "--device", "cpu", folder=tmp_path)
        run = RunDirectory(tmp_path / "run")
        deadline = time.monotonic() + ANSWER_S
        while not run.metrics_file.exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        first.send_signal(signal.SIGTERM)
        out, said = first.communicate(timeout=ANSWER_S)
        assert said.count("Stopped and saved. Go on with: trainonce train --resume run") == 1, said
        assert said.count("tiny: ") == 1
        assert "/trainonce/" not in said, "no traceback but torchrun's own"
        saved = checkpoint.load_latest(run.checkpoints)
        assert saved is not None
        assert 20 <= saved.step < 60
        assert run.config().sync_batch_norm
        assert run.config().provenance["processes"] == 2

        second = self.torchrun("--resume", "run", "--no-sync-bn", "--device", "cpu", "--json", folder=tmp_path)
        out, said = second.communicate(timeout=ANSWER_S)
        assert second.returncode == 0, said
        assert json.loads(out)["step"] == 60, "one line of JSON, from rank 0"
        assert said.count("Resuming run at step-") == 1

    @pytest.mark.long
    def test_torchrun_killed(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (460, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "tiny.npz", train_images=images, train_labels=np.arange(460) % 3)
        longer = [option.replace("1.5", "1000") for option in self.OPTIONS]
        agent = self.torchrun("tiny.npz", *longer, "--device", "cpu", folder=tmp_path)
        run = RunDirectory(tmp_path / "run")
        deadline = time.monotonic() + ANSWER_S
        while not run.metrics_file.exists() and agent.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        agent.kill()
        _, said = agent.communicate(timeout=15)  # the ranks have its pipes too: they have ended as well
        assert said.count("Stopped and saved. Go on with: trainonce train --resume run") == 1, said
        saved = checkpoint.load_latest(run.checkpoints)
        assert saved is not None
        assert saved.step >= 20
