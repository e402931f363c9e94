"""Train one once-for-all supernet; take out a network for every device.

Names are imported when they are first asked for: torch takes seconds, in which the command line must already be able
to stop.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from trainonce.version import __version__

if TYPE_CHECKING:
    from trainonce.cost import Cost
    from trainonce.data import DataSet, load_dataset
    from trainonce.errors import RunError, UserError
    from trainonce.evaluate import EvaluateSettings, Evaluator, Score
    from trainonce.fitting import FitSettings, Fitted, fit
    from trainonce.models import MobileNetV3, MobileNetV3Settings, Supernet
    from trainonce.recipes import RECIPES, AugmentationChange, Phase, Recipe, load_recipe
    from trainonce.run import RunDirectory
    from trainonce.sampling import MacsSampler
    from trainonce.space import Architecture, Choice, SearchSpace
    from trainonce.train import TrainSettings, train_supernet
else:
    _WHERE = {
        "cost": ("Cost",),
        "data": ("DataSet", "load_dataset"),
        "errors": ("RunError", "UserError"),
        "evaluate": ("EvaluateSettings", "Evaluator", "Score"),
        "fitting": ("FitSettings", "Fitted", "fit"),
        "models": ("MobileNetV3", "MobileNetV3Settings", "Supernet"),
        "recipes": ("RECIPES", "AugmentationChange", "Phase", "Recipe", "load_recipe"),
        "run": ("RunDirectory",),
        "sampling": ("MacsSampler",),
        "space": ("Architecture", "Choice", "SearchSpace"),
        "train": ("TrainSettings", "train_supernet"),
    }

    def __getattr__(name: str) -> object:
        for module, names in _WHERE.items():
            if name in names:
                return getattr(import_module(f"trainonce.{module}"), name)
        raise AttributeError(f"module 'trainonce' has no attribute {name!r}")

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
    "fit",
    "load_dataset",
    "load_recipe",
    "train_supernet",
]
