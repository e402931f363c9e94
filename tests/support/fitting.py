"""What the tests of `fit` share: a short recipe, two devices, and a clock that stands still where plans are made."""

from collections.abc import Iterator

import pytest
from tests.support.pace import an_epoch_a_second

from trainonce.models import MobileNetV3
from trainonce.pipeline import fitting
from trainonce.pipeline.fitted import FitSettings
from trainonce.recipes import RECIPES
from trainonce.subnets.finetune import FinetunePace

RECIPE = RECIPES["spos"].with_batch_size(8)


def planned_alike() -> Iterator[None]:
    """The clock stands still where plans are made: an epoch of training takes a second, one of fine-tuning fifty."""
    with pytest.MonkeyPatch.context() as patch:
        an_epoch_a_second(patch)
        patch.setattr(fitting, "finetuning_pace", lambda *_: FinetunePace(step=50.0, scoring=0.0, per_epoch=1))
        patch.setattr(fitting._Fit, "left", lambda _self: 200.0)  # enough for all candidates on any machine
        patch.setattr(fitting, "CANDIDATES", 3)
        yield


def budgets(net: MobileNetV3) -> tuple[float, ...]:
    """Two devices: the smallest subnet is all that fits the one, all subnets fit the other."""
    low, high = (net.cost_of(arch).macs for arch in (net.space.smallest(), net.space.largest()))
    return float(low), float(2 * high)


def settings_of(net: MobileNetV3) -> FitSettings:
    return FitSettings(minutes=8 / 60, max_macs=budgets(net), seed=3)
