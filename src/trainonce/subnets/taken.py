"""What is written down of a subnet that is taken out of a run: the network itself, its scores, where it comes from."""

from collections.abc import Mapping

from trainonce.data import DATASET_NAMES, DataSet
from trainonce.evaluation.evaluator import EvaluateSettings, Score
from trainonce.models import Supernet
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture
from trainonce.subnets import describe_subnet
from trainonce.subnets.description import SubnetDescription


def describe_taken(
    net: Supernet,
    arch: Architecture,
    data: DataSet,
    run: RunDirectory,
    step: int,
    *,
    calibration: EvaluateSettings | None,
    scores: Mapping[str, Score],
) -> SubnetDescription:
    """The description of a subnet of the weights of a step of a run, as `trainonce.subnets.write_subnet` takes it.

    `calibration` is how its batch norms were recalibrated, None where they are the supernet's; `scores` are by split.
    """
    config, reached = run.config(), run.reached(step, len(data.train))
    return describe_subnet(net, arch, data) | {
        "recalibrated": None if calibration is None else calibration.model_dump(),
        "scores": {split: vars(score) for split, score in scores.items()},
        "trained": {
            "run": str(run.path.resolve()),
            "data": data.name,
            "published": data.source.name_or_path in DATASET_NAMES and data.source.fold is None,
            "data_fingerprint": config.data_fingerprint,
            "recipe": config.recipe.name,
            "epochs": reached.epochs,
            "passes": reached.passes,
            "seed": config.seed,
            "step": step,
            "provenance": config.provenance,
        },
    }
