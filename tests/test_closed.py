"""What is closed refuses what it would ignore: subclasses of values, another optimizer, images of another type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainonce.data import DataSet, augment, normalise
from trainonce.errors import UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.models import MobileNetV3
from trainonce.recipes import AugmentationChange, Flip, Phase, Recipe
from trainonce.run.directory import RunDirectory
from trainonce.subnets.finetune import FinetuneSettings, finetune
from trainonce.training.loop import train_supernet
from trainonce.training.settings import TrainSettings

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
IMAGES = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)


class Rotated(Flip):  # type: ignore[misc]  # final
    """A variation of one's own, which nothing would call."""

    def __call__(self, images: Tensor) -> Tensor:
        return images.rot90(1, (2, 3))


class OwnChange(AugmentationChange):  # type: ignore[misc]  # final
    pass


class OwnPhase(Phase):  # type: ignore[misc]  # final
    warmth: float = 1.0


class OwnRecipe(Recipe):  # type: ignore[misc]  # final
    pass


class OwnTraining(TrainSettings):  # type: ignore[misc]  # final
    pass


class OwnEvaluation(EvaluateSettings):  # type: ignore[misc]  # final
    pass


class OwnFinetuning(FinetuneSettings):  # type: ignore[misc]  # final
    pass


def recipe(kind: type[Recipe] = Recipe, phase: type[Phase] = Phase) -> Recipe:
    return kind(name="x", about="", batch_size=8, phases=(phase(name="only", subnets=("uniform",), epochs=1, lr=0.1),))


class TestSubclasses:
    def test_augmentation(self, make_data: MakeData) -> None:
        with pytest.raises(UserError, match="Rotated is a subclass of Flip, and only"):
            make_data(augmentation=(Rotated(),))

    @pytest.mark.parametrize(
        ("asked", "settings", "wrong"),
        [
            (recipe(kind=OwnRecipe), TrainSettings(), "OwnRecipe is a subclass of Recipe, and only"),
            (recipe(phase=OwnPhase), TrainSettings(), "OwnPhase is a subclass of Phase, and only"),
            (
                recipe().model_copy(update={"augmentation": OwnChange(flip=True)}),
                TrainSettings(),
                "OwnChange is a subclass of AugmentationChange, and only",
            ),
            (recipe(), OwnTraining(), "OwnTraining is a subclass of TrainSettings, and only"),
        ],
    )
    def test_training(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, asked: Recipe, settings: TrainSettings, wrong: str
    ) -> None:
        with pytest.raises(UserError, match=wrong):
            train_supernet(make_net(), asked, make_data(), RunDirectory(tmp_path / "run"), settings=settings)
        assert not (tmp_path / "run" / "run.json").exists()

    def test_evaluating_and_finetuning(self, make_net: MakeNet, make_data: MakeData) -> None:
        with pytest.raises(UserError, match="OwnEvaluation is a subclass of EvaluateSettings, and only"):
            Evaluator(make_data(), "validate", OwnEvaluation())
        net = make_net()
        evaluator = Evaluator(make_data(), "validate", EvaluateSettings(calibration_images=8))
        with pytest.raises(UserError, match="OwnFinetuning is a subclass of FinetuneSettings, and only"):
            finetune(net.extract(net.space.smallest()), evaluator, OwnFinetuning(epochs=1))


class TestOptimizer:
    @pytest.mark.parametrize("kind", [torch.optim.Adam, type("OwnSGD", (torch.optim.SGD,), {})])
    def test_another_is_refused_before_it_trains(
        self,
        make_net: MakeNet,
        make_data: MakeData,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        kind: type[torch.optim.SGD] | type[torch.optim.Adam],
    ) -> None:
        def another(network: nn.Module, *_: Any) -> torch.optim.Optimizer:
            return kind(network.parameters(), lr=0.1)

        monkeypatch.setattr("trainonce.training.state.optimizer_for", another)
        with pytest.raises(UserError, match=f"the optimizer is a {kind.__name__}, but training takes torch"):
            train_supernet(make_net(), recipe(), make_data(), RunDirectory(tmp_path / "run"))

    def test_one_put_in_while_training_is_not_saved(
        self, make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        net, run = make_net(), RunDirectory(tmp_path / "run")
        from trainonce.training.state import TrainState

        record = TrainState.record

        def replacing(state: TrainState, *args: Any) -> None:
            state.optimizer = torch.optim.Adam(net.parameters())
            record(state, *args)

        monkeypatch.setattr(TrainState, "record", replacing)
        with pytest.raises(UserError, match="the optimizer is a Adam, but training takes torch"):
            train_supernet(net, recipe(), make_data(), run)


class TestImages:
    def test_floats_are_refused_with_a_sentence(self) -> None:
        for images in (IMAGES.float(), IMAGES.double(), IMAGES.bool()):
            with pytest.raises(UserError, match=r"images must be uint8 from 0 to 255, not (float|bool)"):
                normalise(images, mean=(0.0,), std=(1.0,))
            with pytest.raises(UserError, match="images must be uint8 from 0 to 255"):
                augment(images, (), mean=(0.0,), std=(1.0,), generator=torch.Generator())

    def test_another_shape(self) -> None:
        with pytest.raises(UserError, match=r"images must have the shape \[N, C, H, W\], not \[1, 8, 8\]"):
            normalise(IMAGES[0], mean=(0.0,), std=(1.0,))
        with pytest.raises(UserError, match="images of 1 channels need as many numbers of mean and of std"):
            normalise(IMAGES, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def test_more_calibration_images_than_fit(self, make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trainonce.limits.memory_bytes", lambda: 4 * 64 * 100)
        Evaluator(make_data(), "validate", EvaluateSettings(calibration_images=100))
        with pytest.raises(UserError, match=r"101 calibration images of 8 x 8 pixels would take 25,856 bytes"):
            Evaluator(make_data(), "validate", EvaluateSettings(calibration_images=101))
