"""One subnet scored class by class: a run's, or one that was taken out. Writes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from trainonce.cost.macs import Cost
from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score, SplitName
from trainonce.evaluation.per_class import PerClass, score_by_class
from trainonce.files import is_there
from trainonce.pipeline.finetuning import refuse_other_images, run_of
from trainonce.pipeline.machine import device_named, use_threads
from trainonce.recipes import Reached
from trainonce.run.directory import RunDirectory
from trainonce.subnets import read_subnet


@dataclass(frozen=True, kw_only=True)
class EvaluatedSubnet:
    """A subnet that was scored."""

    path: Path
    """The run's directory, or the subnet's own."""
    arch: str
    cost: Cost
    split: SplitName
    score: Score
    per_class: PerClass
    class_names: tuple[str, ...]


def is_subnet(path: str | Path) -> bool:
    """Whether a directory holds a subnet that was taken out, and no run."""
    path = Path(path)
    return is_there(path / "config.json") and not is_there(path / "run.json")


def evaluate_subnet(
    path: str | Path,
    arch: str | None = None,
    *,
    split: SplitName = "validate",
    calibration_images: int = 2000,
    run: str | Path | None = None,
    data: DataSet | str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    decode_workers: int | None = None,
    on_data: Callable[[DataSet], None] = lambda _: None,
    on_reached: Callable[[Reached], None] = lambda _: None,
) -> EvaluatedSubnet:
    """Score one subnet class by class: `trainonce evaluate RUN --arch ARCH`, or `trainonce evaluate SUBNET`.

    `path` is a run's directory, and `arch` an architecture, `largest` or `smallest`, whose batch norms are recalibrated
    by `calibration_images` and `seed`; or `path` is the directory of a subnet, which is scored as it is, and whose run
    says which images those are. `run` and `data` say where that run and the images are now, if they have moved.
    `on_reached` is called with how far the training of a run had come. Nothing is written. Raises `UserError` for what
    cannot be, and `RunError` where the scores are not finite.
    """
    use_threads(threads)
    path, settled = Path(path), device_named(device)
    network: nn.Module
    if is_subnet(path):
        if arch is not None:
            raise UserError(f"{path} is a subnet already: an architecture is chosen in a run")
        network, description = read_subnet(path)
        place = run_of(description, run, path)
        images = place.load_data(data_dir, moved_to=data, workers=decode_workers).to(settled)
        refuse_other_images(description, place, images, path)
        on_data(images)
        network, cost = network.to(settled), Cost(macs=int(description.macs), params=int(description.params))
        name = description.architecture
    else:
        if arch is None or run is not None:
            raise UserError(f"{path} is no subnet: name one of a run with --arch, and no other run with --run")
        net, step = RunDirectory(path).load_supernet()
        chosen = net.space.parse(arch)
        images = RunDirectory(path).load_data(data_dir, moved_to=data, workers=decode_workers).to(settled)
        on_data(images)
        on_reached(RunDirectory(path).reached(step, len(images.train)))
        evaluator = Evaluator(images, split, EvaluateSettings(calibration_images=calibration_images, seed=seed))
        network, cost, name = evaluator.recalibrated(net.to(settled), chosen), net.cost_of(chosen), str(chosen)
    score, classes = score_by_class(network, {"validate": images.validate, "test": images.test}[split], images, split)
    return EvaluatedSubnet(
        path=path,
        arch=name,
        cost=cost,
        split=split,
        score=score,
        per_class=classes,
        class_names=images.class_names,
    )
