"""Losses that are not finite, splits without images: what is whole is handed over, what cannot be is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.fitting import RECIPE, planned_alike, settings_of

from trainonce.data import DataSet
from trainonce.errors import NotFiniteError, UserError
from trainonce.evaluation.evaluator import Evaluator, Score
from trainonce.evaluation.scoring import Chunk, Scoring
from trainonce.models import MobileNetV3
from trainonce.pipeline import fitting
from trainonce.pipeline.fitting import Watch, fit_supernet
from trainonce.run.directory import RunDirectory

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
SCORED = Scoring._score

pace = pytest.fixture(autouse=True, scope="module")(planned_alike)


def test_a_fine_tuning_that_grows_beyond_all_numbers_is_left_out(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, said = make_net(), list[str]()

    def diverging(*_: object, **__: object) -> None:
        raise NotFiniteError("by step 1 the loss is nan")

    monkeypatch.setattr(fitting, "finetune", diverging)
    fitted = fit_supernet(
        *(net, RECIPE, make_data(), RunDirectory(tmp_path / "run"), settings_of(net)), Watch(stage=said.append)
    )
    assert fitted is not None
    assert [one.finetuned_epochs for one in fitted] == [0, 0]
    assert all(one.after == one.before for one in fitted)
    assert said.count("Its loss grew beyond all numbers: it is handed over as it was") == 2


@pytest.mark.parametrize("whole", [1, 0])
def test_subnets_without_a_finite_loss_are_not_chosen_from(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    """All but the first candidates of the larger device, or all of them."""
    net, run, said = make_net(), RunDirectory(tmp_path / "run"), list[str]()
    smallest, finite = net.space.smallest(), list[str]()

    def scored(self: Scoring, chunk: Chunk) -> list[Score]:
        scores = SCORED(self, chunk)
        for number, arch in enumerate(chunk):
            if arch != smallest and len(finite) >= whole:
                scores[number] = replace(scores[number], loss=float("inf"))
            elif arch != smallest:
                finite.append(str(arch))
        return scores

    monkeypatch.setattr(Scoring, "_score", scored)
    arguments = (net, RECIPE, make_data(), run, settings_of(net), Watch(stage=said.append))
    if whole:
        fitted = fit_supernet(*arguments)
        assert fitted is not None
        assert [(one.arch, one.candidates) for one in fitted] == [(str(smallest), 1), (finite[0], 1)]
    else:
        with pytest.raises(NotFiniteError, match=r"no subnet that was drawn for .* has a finite loss on validate"):
            fit_supernet(*arguments)
    [left_out] = [sentence for sentence in said if sentence.startswith("Not chosen from: ")]
    assert "subnets have no score on validate" in left_out


@pytest.mark.parametrize("split", ["validate", "test"])
def test_a_split_without_images_is_refused_before_the_training(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, split: str
) -> None:
    net, run, data = make_net(), RunDirectory(tmp_path / "run"), make_data(**{split: 0})
    with pytest.raises(UserError, match=f"tiny has no {split} images, which this needs: give it some"):
        fit_supernet(net, RECIPE, data, run, settings_of(net))
    assert not run.path.exists()
    with pytest.raises(UserError, match=f"no {split} images"):
        Evaluator(data, split)  # type: ignore[arg-type]
