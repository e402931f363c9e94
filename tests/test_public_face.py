"""The names that a person imports. Adding or removing one is a decision, and shows here."""

import re
import warnings
from pathlib import Path

import pytest

import trainonce

ROOT = Path(__file__).parent.parent


def test_the_public_names_are_these() -> None:
    assert set(trainonce.__all__) == {
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
    }


@pytest.mark.parametrize("name", sorted(set(trainonce.__all__) - {"__version__", "RECIPES"}))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(trainonce, name).__doc__


SHORTER = {
    "scaled(0.05)": "scaled(0.002)",
    "epochs=40": "epochs=1, width=0.25",
    "num_classes=10": "num_classes=10, width_mult=0.25",
    "per_bucket=10": "per_bucket=1",
    "max_macs=1.5, scores=30": "max_macs=0.4, scores=2",
    "max_macs=1.5, test=True": "max_macs=0.4, test=True",
    "epochs=5": "epochs=1",
    "batches=20": "batches=2, probes=2",
}


def test_the_readme_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stages and the parts as they stand there, one after the other, but for their lengths."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL))
    for long, short in SHORTER.items():
        assert code.count(long) == 1, long
        code = code.replace(long, short)
    stages = ("train", "evaluate", "search", "extract", "finetune", "export", "measure", "report")
    assert all(f"pipeline.{stage}(" in code for stage in stages)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for a reader they are no errors
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.count("95% interval") == 3
    assert (tmp_path / "runs" / "python" / "report.html").is_file()


def test_the_version_is_the_changelogs() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == trainonce.__version__  # type: ignore[index]
    assert f"version: {trainonce.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
