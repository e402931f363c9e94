"""Train one once-for-all supernet; take out a network for every device.

Names are imported when they are first asked for: torch takes seconds, in which the command line must already be able
to stop.
"""

from typing import TYPE_CHECKING

from trainonce import pipeline
from trainonce.lazy import names_from
from trainonce.version import __version__

if TYPE_CHECKING:
    from trainonce.cost.macs import Cost
    from trainonce.data import DataSet, load_dataset
    from trainonce.errors import RunError, UserError
    from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator, Score
    from trainonce.models import MobileNetV3, MobileNetV3Settings, Supernet
    from trainonce.models.traced import elastic
    from trainonce.pipeline.fitted import FitSettings, Fitted
    from trainonce.pipeline.fitting import fit_supernet
    from trainonce.pipeline.hub import from_pretrained, push_to_hub
    from trainonce.recipes import RECIPES, AugmentationChange, Phase, Recipe, load_recipe
    from trainonce.run.directory import RunDirectory
    from trainonce.sampling import MacsSampler
    from trainonce.space import Architecture, Choice, SearchSpace
    from trainonce.training.loop import train_supernet
    from trainonce.training.settings import TrainSettings
else:
    __getattr__ = names_from(
        __name__,
        {
            "cost.macs": ("Cost",),
            "data": ("DataSet", "load_dataset"),
            "errors": ("RunError", "UserError"),
            "evaluation.evaluator": ("EvaluateSettings", "Evaluator", "Score"),
            "pipeline.fitted": ("FitSettings", "Fitted"),
            "pipeline.fitting": ("fit_supernet",),
            "models": ("MobileNetV3", "MobileNetV3Settings", "Supernet"),
            "models.traced": ("elastic",),
            "pipeline.hub": ("from_pretrained", "push_to_hub"),
            "recipes": ("RECIPES", "AugmentationChange", "Phase", "Recipe", "load_recipe"),
            "run.directory": ("RunDirectory",),
            "sampling": ("MacsSampler",),
            "space": ("Architecture", "Choice", "SearchSpace"),
            "training.loop": ("train_supernet",),
            "training.settings": ("TrainSettings",),
        },
    )

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "RECIPES",
    "Architecture",
    "AugmentationChange",
    "Choice",
    "Cost",
    "DataSet",
    "EvaluateSettings",
    "Evaluator",
    "FitSettings",
    "Fitted",
    "MacsSampler",
    "MobileNetV3",
    "MobileNetV3Settings",
    "Phase",
    "Recipe",
    "RunDirectory",
    "RunError",
    "Score",
    "SearchSpace",
    "Supernet",
    "TrainSettings",
    "UserError",
    "__version__",
    "elastic",
    "fit_supernet",
    "from_pretrained",
    "load_dataset",
    "load_recipe",
    "pipeline",
    "push_to_hub",
    "train_supernet",
]
