"""Run by parallel/test_distributed.py: trains in several processes at a time, as each line of JSON on stdin says.

This process imports torch once and forks a child for every rank; it never computes anything itself. Each job is
answered by a line with the ranks' exit codes; what else there is to know the ranks write to their folder.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

import trainonce.training.loop
from trainonce.cli.stopping import Stop, stop_on_signal
from trainonce.data import DataSet, Split
from trainonce.errors import RunError, UserError
from trainonce.lab.measures.forgetting import Prober, ProberSettings
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.parallel.distributed import Ranks, process_group
from trainonce.recipes import RECIPES, AugmentationChange, Colour, Crop, Flip, Recipe
from trainonce.run.directory import RunDirectory
from trainonce.training.loop import train_supernet
from trainonce.training.settings import Progress, TrainSettings
from trainonce.training.step_sums import Known

LIMIT_S = 40.0
"""How long a job may take before its ranks count as hung and are killed."""
TALK = ("all_reduce", "all_gather", "broadcast")


def data_set(count: int) -> DataSet:
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(count) % 3)
    return DataSet(
        name="tiny",
        class_names=("a", "b", "c"),
        mean=(0.5,),
        std=(0.3,),
        augmentation=(Crop(scale=(0.5, 1.0)), Flip(), Colour(brightness=0.2)),
        train=split,
        calibrate=split,
        validate=split,
        test=split,
    )


def network(seed: int) -> MobileNetV3:
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
    return MobileNetV3(geometry, seed=seed)


def recipe_of(job: dict[str, Any]) -> Recipe:
    recipe = RECIPES[job["recipe"]].with_batch_size(job["batch"])
    recipe = recipe.scaled(job["epochs"] / recipe.epochs)
    phases = tuple(p.model_copy(update={"lr": p.lr * job.get("lr_factor", 1.0)}) for p in recipe.phases)
    fields = {"idle_weights": job.get("idle", "move"), **job.get("fields", {})}
    if "also" in job:
        fields["augmentation"] = AugmentationChange.model_validate({"also": job["also"]})
    return recipe.model_copy(update={"phases": phases, **fields})


def count_talk() -> dict[str, list[int]]:
    """Notes from now on how many numbers each exchange is of."""
    talk: dict[str, list[int]] = {name: [] for name in TALK}

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def note(*arguments: Any, **options: Any) -> Any:
            talk[name].append(arguments[-1].numel())
            return real(*arguments, **options)

        return note

    for name in TALK:
        setattr(dist, name, noting(name, getattr(dist, name)))
    return talk


def watcher(
    job: dict[str, Any], net: MobileNetV3, ranks: Ranks, folder: Path, stop: Stop, told: dict[str, Any]
) -> Callable[[], bool]:
    """Called after every step: plants what is not finite, asks to stop, and says that the run is on its way.

    `told` is told which weights had no gradient in the step.
    """
    steps = 0

    def after_step() -> bool:
        nonlocal steps
        steps += 1
        (folder / f"alive-{ranks.rank}").touch()
        told["idle"] = [name for name, parameter in net.named_parameters() if parameter.grad is None]
        if job.get("plant") == [ranks.rank, steps]:
            with torch.no_grad():
                net.classifier.bias[1] = float("nan")
        time.sleep(job.get("pause_s", 0.0))
        return stop.number is not None or job.get("stop") == [ranks.rank, steps]

    return after_step


def prober(job: dict[str, Any], net: MobileNetV3, ranks: Ranks, folder: Path) -> Prober | None:
    if not (job.get("look") and ranks.first):
        return None
    probes = (net.space.smallest(), net.space.largest())
    often = ProberSettings(calibration_images=8, share=1000)
    return Prober(net, recipe_of(job), data_set(32), RunDirectory(folder / "run"), probes=probes, settings=often)


def train(job: dict[str, Any], ranks: Ranks, folder: Path) -> dict[str, Any]:
    net = network(job.get("seeds", [0] * ranks.size)[ranks.rank])
    told: dict[str, Any] = {"rank": ranks.rank, "talk": count_talk(), "reports": 0}

    def report(_: Progress) -> None:
        told["reports"] += 1

    try:
        with stop_on_signal() as stop:
            told["finished"] = train_supernet(
                net,
                recipe_of(job),
                data_set(job.get("images", [32] * ranks.size)[ranks.rank]),
                RunDirectory(folder / "run"),
                resume=job.get("resume", False),
                settings=TrainSettings(
                    checkpoint_every_s=job.get("checkpoint_every_s", 1000.0),
                    log_every=job.get("log_every", 1000),
                    sync_batch_norm=job.get("sync", False),
                ),
                on_progress=report,
                on_epoch=prober(job, net, ranks, folder),
                should_stop=watcher(job, net, ranks, folder, stop, told),
                ranks=ranks,
            )
    except (UserError, RunError) as error:
        told |= {"error": str(error), "kind": type(error).__name__, "everywhere": error.everywhere}
    told["layers"] = sorted({type(module).__name__ for module in net.modules()})
    save_file({k: v.clone() for k, v in net.state_dict().items()}, folder / f"rank-{ranks.rank}.safetensors")
    return told


def one_rank(job: dict[str, Any], rank: int, port: int) -> None:
    folder = Path(job["folder"])
    if "look_every" in job:
        trainonce.training.loop._look_every = lambda device: int(job["look_every"])
    if "known" in job:
        Known.PER_LOOK, Known.KEPT = job["known"]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["ranks"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group("cpu", timeout=timedelta(seconds=LIMIT_S / 2)) as ranks:
        told = train(job, ranks, folder)
    (folder / f"rank-{rank}.json").write_text(json.dumps(told))


def fork(job: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            one_rank(job, rank, port)
            code = 0
        except BaseException:  # noqa: BLE001, a child must never go on as its parent
            sys.excepthook(*sys.exc_info())
        os._exit(code)
    return child


def disturb(job: dict[str, Any], children: list[int]) -> None:
    """Send a rank a signal, some time after it has done its first step. It may have ended, but is not reaped yet."""
    rank, number, delay_s = job["signal"]
    deadline = time.monotonic() + LIMIT_S
    while not (Path(job["folder"]) / f"alive-{rank}").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay_s)
    os.kill(children[rank], number)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(job: dict[str, Any]) -> dict[str, Any]:
    port = free_port()
    children = [fork(job, rank, port) for rank in range(job["ranks"])]
    if "signal" in job:
        disturb(job, children)
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT_S
    while len(codes) < len(children) and time.monotonic() < deadline:
        for rank, child in enumerate(children):
            if rank not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    hung = [rank for rank in range(len(children)) if rank not in codes]
    for rank in hung:
        os.kill(children[rank], signal.SIGKILL)
        os.waitpid(children[rank], 0)
    return {"codes": [codes.get(rank) for rank in range(len(children))], "hung": hung}


def run_under_launcher(job: dict[str, Any]) -> dict[str, Any]:
    """As `run`, but the ranks belong to a process of their own, which is killed; `hung`: those outliving it."""
    reader, writer = os.pipe()  # the ranks hold the writing end: it is closed when the last has ended
    launcher = os.fork()
    if launcher == 0:
        os.setsid()
        port = free_port()
        for rank in range(job["ranks"]):
            fork(job, rank, port)
        time.sleep(2 * LIMIT_S)
        os._exit(1)
    os.close(writer)
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and not all(
        (Path(job["folder"]) / f"alive-{rank}").exists() for rank in range(job["ranks"])
    ):
        time.sleep(0.005)
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    ended = bool(select.select([reader], [], [], job["launcher_killed"])[0])
    os.close(reader)
    if not ended:
        os.killpg(launcher, signal.SIGKILL)
    return {"codes": [], "hung": [] if ended else list(range(job["ranks"]))}


def main() -> None:
    torch.set_num_threads(1)
    os.fsync = os.fstat  # type: ignore[assignment]  # no test cuts the power
    for line in sys.stdin:
        job = json.loads(line)
        found = run_under_launcher(job) if "launcher_killed" in job else run(job)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
