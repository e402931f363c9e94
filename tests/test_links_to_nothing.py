"""A link that leads nowhere is damage, and so is a file missing beside what was made with it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.lab.studies.run_study import StudyDirectory
from trainonce.models import MobileNetV3
from trainonce.nn.native import library
from trainonce.recipes import RECIPES
from trainonce.records import append_line
from trainonce.run.directory import RunConfig, RunDirectory


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def test_a_study_whose_plan_is_missing_beside_its_results(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path)
    assert study.recorded() == {}
    append_line(study.times_file, {"run": "a"})
    with pytest.raises(UserError, match=r"study\.json is missing, though there are results"):
        study.recorded()
    loop(study.study_file)
    with pytest.raises(UserError, match=r"study\.json cannot be read"):
        study.recorded()


def test_a_run_is_not_begun_over_a_link_to_nothing(
    make_net: Callable[..., MobileNetV3], make_data: Callable[..., DataSet], tmp_path: Path
) -> None:
    net, data, run = make_net(), make_data(), RunDirectory(tmp_path)
    config = RunConfig(
        data=data.source,
        data_fingerprint=data.fingerprint(),
        family=net.family,
        model=net.settings.model_dump(mode="json"),
        recipe=RECIPES["rss"],
    )
    loop(run.config_file)
    with pytest.raises(UserError, match=r"run\.json cannot be read"):
        run.create(config)
    assert run.config_file.is_symlink()


def test_kernels_that_are_a_link_to_nothing_are_compiled_anew(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"a library")
    (tmp_path / "compiler.sh").write_text(f'cp "{tmp_path}/made" "$2"\n')
    command = ["/bin/sh", str(tmp_path / "compiler.sh")]
    kept = library._kept_or_built(tmp_path / "cache", "kernels-0123", command)
    loop(kept)
    with pytest.warns(UserWarning, match="is damaged: it is compiled anew"):
        assert library._kept_or_built(tmp_path / "cache", "kernels-0123", command).read_bytes() == b"a library"
