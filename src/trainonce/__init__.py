"""Train one once-for-all supernet; take out a network for every device."""

from trainonce.cost import Cost
from trainonce.data import DataSet, load_dataset
from trainonce.errors import RunError, UserError
from trainonce.evaluate import EvaluateSettings, Evaluator, Score
from trainonce.models import MobileNetV3, MobileNetV3Settings, Supernet
from trainonce.recipes import RECIPES, Phase, Recipe, load_recipe
from trainonce.run import RunDirectory
from trainonce.sampling import MacsSampler
from trainonce.space import Architecture, Choice, SearchSpace
from trainonce.train import TrainSettings, train_supernet
from trainonce.version import __version__

__all__ = [
    "RECIPES",
    "Architecture",
    "Choice",
    "Cost",
    "DataSet",
    "EvaluateSettings",
    "Evaluator",
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
    "load_dataset",
    "load_recipe",
    "train_supernet",
]
