"""A writer that dies before any of its file operations loses nothing that was there, hides nothing, and can go on."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support.dying import deaths
from tests.support.latency_tables import table_with
from tests.support.lines import a_finished, a_result

from trainonce import files
from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.files import write_atomic
from trainonce.lab.studies.run_study import RunResult, StudyDirectory
from trainonce.latency import LatencyTable
from trainonce.latency.log import Log, MeasuredLine
from trainonce.models import MobileNetV3
from trainonce.nn.native import library
from trainonce.recipes import RECIPES
from trainonce.run import checkpoint
from trainonce.run.directory import RunConfig, RunDirectory
from trainonce.subnets import describe_subnet, read_subnet, write_subnet

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
PART = '{"part": "stem", "size": %d}'


@pytest.fixture(params=["exchanged", "moved aside"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With directories exchanged at once, and where the file system cannot do that."""

    if request.param == "moved aside":
        monkeypatch.setattr(files, "exchange", lambda _one, _other: False)


def put_back(place: Path, before: Path) -> None:
    """Make a folder what another one is."""
    shutil.rmtree(place)
    if before.exists():
        shutil.copytree(before, place)


def test_replacing_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    found = []

    def check() -> None:
        found.append(path.read_bytes())
        write_atomic(path, b"old")
        assert [other.name for other in tmp_path.iterdir() if other.suffix == ".json"] == []

    assert deaths(lambda: write_atomic(path, b"new"), check) > 5
    assert set(found) == {b"old", b"new"}
    assert found == sorted(found, reverse=True)


def saved(folder: Path, step: int, value: float) -> None:
    checkpoint.save(folder, step, {"weights": {"x": torch.full((4,), value)}}, {"step": step})


@pytest.mark.parametrize("step", [3, 2])
def test_checkpoints(tmp_path: Path, step: int, exchange: None) -> None:
    """Of a new step, and of a step that is saved again."""
    folder, before = tmp_path / "checkpoints", tmp_path / "before"
    for old in (1, 2):
        saved(before, old, float(old))
    shutil.copytree(before, folder)
    found = []

    def check() -> None:
        newest = checkpoint.load_latest(folder)  # a warning would be an error
        assert newest is not None
        found.append((newest.step, float(newest.tensors["weights"]["x"][0])))
        saved(folder, 4, 4.0)
        again = checkpoint.load_latest(folder)
        assert again is not None
        assert again.step == 4
        assert not list(folder.glob(".*"))
        put_back(folder, before)

    assert deaths(lambda: saved(folder, step, 9.0), check) > 15
    assert set(found) == {(2, 2.0), (step, 9.0)}


def test_a_first_subnet_is_whole_or_not_there(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    """What replaces one: tests/subnets/test_directory.py."""
    net, path, found = make_net(depths=(1,)), tmp_path / "subnet", []
    arch = net.space.smallest()
    network, description = net.extract(arch), describe_subnet(net, arch, make_data())

    def check() -> None:
        found.append(path.exists())
        if found[-1]:
            assert read_subnet(path)[1].architecture == str(arch)
            shutil.rmtree(path)

    assert deaths(lambda: write_subnet(path, network, description), check) > 10
    assert set(found) == {False, True}


def test_a_latency_table(tmp_path: Path) -> None:
    path, old, new = tmp_path / "table.json", table_with({PART % 1: 1.0}), table_with({PART % 1: 2.0})
    old.write(path)
    found = []

    def check() -> None:
        found.append(LatencyTable.read(path).parts[0].ms)
        old.write(path)

    assert deaths(lambda: new.write(path), check) > 5
    assert set(found) == {1.0, 2.0}


def test_a_latency_log(tmp_path: Path) -> None:
    path, identity = tmp_path / "log.jsonl", {"of": "parts"}
    first, second = (MeasuredLine(number=number, ms=[number + 1.0]) for number in range(2))
    Log(path, identity).add(first)
    before = path.read_bytes()

    def check() -> None:
        lines = Log(path, identity).lines
        assert lines[0] == first
        assert lines[1:] in ([], [second])
        path.write_bytes(before)

    assert deaths(lambda: Log(path, identity).add(second), check) > 3


def result_of(name: str) -> RunResult:
    return RunResult(results=[a_result(run=name, top1=float(n)) for n in range(2)], time=a_finished(run=name))


def test_a_runs_results_in_a_study(tmp_path: Path) -> None:
    study, before = StudyDirectory(tmp_path / "study"), tmp_path / "before"
    study.path.mkdir()
    study.record(result_of("first"))
    shutil.copytree(study.path, before)

    def check() -> None:
        names = [line.run for line in study.finished()]
        assert names in (["first"], ["first", "second"])
        assert [line.run for line in study.results()] == [name for name in names for _ in range(2)]
        study.drop_unfinished()
        if names == ["first"]:
            study.record(result_of("second"))
        assert [line.top1 for line in study.results()] == [0.0, 1.0, 0.0, 1.0]
        put_back(study.path, before)

    assert deaths(lambda: study.record(result_of("second")), check) > 10


def test_a_run_is_begun_or_not(make_net: MakeNet, make_data: MakeData, tmp_path: Path) -> None:
    net, data, run = make_net(), make_data(), RunDirectory(tmp_path / "run")
    config = RunConfig(
        data=data.source,
        data_fingerprint=data.fingerprint(),
        family=net.family,
        model=net.settings.model_dump(mode="json"),
        recipe=RECIPES["rss"],
    )

    def check() -> None:
        try:
            run.create(config)
        except UserError:
            assert run.config() == config
        shutil.rmtree(run.path)

    assert deaths(lambda: run.create(config), check) > 5


def test_the_cache_of_kernels(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"a library")
    compiler = tmp_path / "compiler.sh"
    compiler.write_text(f'cp "{tmp_path}/made" "$2"\n')
    folder, command = tmp_path / "cache", ["/bin/sh", str(compiler)]

    def build() -> Path:
        return library._kept_or_built(folder, "kernels-0123", command)

    def check() -> None:
        assert build().read_bytes() == b"a library"  # a warning of a damaged one would be an error
        shutil.rmtree(folder)

    assert deaths(build, check) > 5
