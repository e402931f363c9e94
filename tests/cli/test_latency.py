"""The commands: build, show, check; and the sentences for what cannot be."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support import command_line
from typer.testing import CliRunner, Result

from trainonce.cli import app as cli
from trainonce.data import DataSource
from trainonce.errors import UserError
from trainonce.latency import BuildSettings, LatencyTable, bench
from trainonce.latency.log import Log
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES
from trainonce.run.directory import RunConfig, RunDirectory

MakeNet = Callable[..., MobileNetV3]
QUICK = classmethod(lambda cls, **fields: cls(networks=10, held_out=5, rounds=1, **fields))


@pytest.fixture
def run(make_net: MakeNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An untrained run of a small space; `--quick` is quicker still."""
    monkeypatch.setattr(BuildSettings, "quick", QUICK)
    net = make_net(depths=(1,), kernel_sizes=(3,), strides=(1, 2, 2, 1, 1))
    config = RunConfig(
        data=DataSource(name_or_path="digits"),
        data_fingerprint="",
        family=net.family,
        model=net.settings.model_dump(mode="json"),
        recipe=RECIPES["rss"],
    )
    RunDirectory(tmp_path / "run").create(config)
    return tmp_path / "run"


def trainonce(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["latency", *map(str, arguments)])


def refused(result: Result) -> str:
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_build_show_check(run: Path) -> None:
    planned = trainonce("build", run, "--runtime", "torch", "--quick", "--dry-run", "--json")
    path = run / "latency" / "torch-1-1.json"
    assert planned.exit_code == 0
    assert json.loads(planned.stdout)["table"] == str(path)
    assert json.loads(planned.stdout)["seconds"] > 0
    assert "10 subnets to measure and 5 to check by, torch, 1 thread, batch 1: about" in planned.stderr
    assert not path.exists()

    built = trainonce("build", run, "--runtime", "torch", "--quick")
    assert built.exit_code == 0, built.output
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-done is left
    table = LatencyTable.read(path)
    assert str(table.error) in built.stdout
    assert f"Wrote {path}" in built.stdout

    shown = trainonce("show", path)
    assert shown.exit_code == 0
    assert str(table.error) in shown.stdout
    assert shown.stdout.count("channels at") == len(table.parts) - 1
    assert json.loads(trainonce("show", path, "--json").stdout)["runtime"] == "torch"

    checked = trainonce("check", path, run, "--networks", "3", "--rounds", "1")
    assert checked.exit_code == 0, checked.output
    assert "Here and now: mean error" in checked.stdout
    assert (
        "The machine's pace went from 1.00 to 1.00 times its usual time meanwhile, which is taken out" in checked.stdout
    )
    assert "another" not in checked.stderr
    as_json = trainonce("check", path, run, "--networks", "2", "--rounds", "1", "--json")
    said = json.loads(as_json.stdout)
    assert said["networks"] == 2
    assert said["factor"] > 0
    assert said["drift"] == [1, 1], "there is one group alone"


def test_stopped_it_says_what_is_kept_and_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("latency", "build", run, "--runtime", "torch", "--quick")
    measured, kept = list[int](), run / "latency" / ".torch-1-1.json.measured.jsonl"
    real_parts, real_networks = bench.Bench.parts, bench.Bench.networks

    def counted(at: bench.Bench, *arguments: Any) -> Any:
        measured.append(len(arguments[1]))
        if len(measured) == 2:
            signal.raise_signal(signal.SIGINT)
        return real_networks(at, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(bench.Bench, "parts", lambda *_: signal.raise_signal(signal.SIGTERM))
        command_line.trainonce(*command).refused("^trainonce: stopped; nothing is measured yet$", code=143)
    monkeypatch.setattr(bench.Bench, "networks", counted)
    stopped = command_line.trainonce(*command)
    stopped.refused(f"^trainonce: stopped; 2 measurements are kept in {kept}: run the same again", code=130)
    with monkeypatch.context() as patched:
        patched.setattr(bench.Bench, "parts", None)
        patched.setattr(Log, "remove", lambda _: signal.raise_signal(signal.SIGINT))
        assert command_line.trainonce(*command).code == 130
    assert measured == [12, 8, 8], "the parts and the first networks are not measured again"
    table = LatencyTable.read(run / "latency" / "torch-1-1.json")
    assert table.parts, "the table is written before what was measured is deleted"
    assert bench.Bench.parts is real_parts


def test_a_check_that_is_stopped_keeps_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainonce("build", run, "--runtime", "torch", "--quick")
    path = run / "latency" / "torch-1-1.json"
    monkeypatch.setattr(bench.Bench, "networks", lambda *_: signal.raise_signal(signal.SIGINT))
    stopped = command_line.trainonce("latency", "check", path, run)
    stopped.refused("^trainonce: stopped; a check keeps nothing, and the table is as it was$", code=130)


def test_another_machine_is_said(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables" / "mine.json"
    built = trainonce("build", run, "--runtime", "torch", "--quick", "--out", out, "--batch", "2", "--json")
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["table"] == str(out)
    assert json.loads(built.stdout)["error"]["networks"] == 5
    table = LatencyTable.read(out)
    assert table.batch == 2
    table.model_copy(update={"machine": {**table.machine, "cpu": "an abacus"}}).write(out)
    checked = trainonce("check", out, run, "--networks", "2", "--rounds", "1")
    assert checked.exit_code == 0, checked.output
    assert "The table was made with another cpu: an abacus; here it is" in checked.stderr


def test_what_cannot_be_is_a_sentence(run: Path, tmp_path: Path) -> None:
    assert "unknown runtime 'abacus'; the runtimes are onnxruntime, torch, openvino, litert" in refused(
        trainonce("build", run, "--runtime", "abacus")
    )
    assert "holds no run" in refused(trainonce("build", tmp_path / "nowhere"))
    (tmp_path / "no.json").write_text("{}")
    assert "is not a latency table" in refused(trainonce("show", tmp_path / "no.json"))
    assert "is not a latency table" in refused(trainonce("check", tmp_path / "no.json", run))


@pytest.mark.parametrize(("option", "value"), [("--threads", "2000"), ("--batch", "5000")])
def test_a_number_out_of_range_is_a_sentence(run: Path, option: str, value: str) -> None:
    result = trainonce("build", run, "--runtime", "torch", option, value)
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{option}'" in result.stderr


def test_the_plan_of_a_small_space_is_what_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """243 subnets, of which at most half are measured, three of them anchors."""
    monkeypatch.setattr(BuildSettings, "quick", classmethod(lambda cls, **fields: cls(**fields)))
    planned = trainonce("build", run, "--runtime", "torch", "--quick", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "95 subnets to measure and 23 to check by" in planned.stderr


def test_a_second_build_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called while the first measures, which then ends as ever."""
    real, second = bench.Bench.measure, list[str]()

    def measure(*arguments: Any) -> None:
        monkeypatch.setattr(bench.Bench, "measure", real)
        second.append(refused(trainonce("build", run, "--runtime", "torch", "--quick")))
        real(*arguments)

    monkeypatch.setattr(bench.Bench, "measure", measure)
    first = trainonce("build", run, "--runtime", "torch", "--quick")
    assert first.exit_code == 0, first.output
    assert "another process is measuring into" in second[0]
    assert [file.name for file in (run / "latency").iterdir()] == ["torch-1-1.json"]


@pytest.mark.parametrize(
    ("runtime", "module", "extra"),
    [
        ("onnxruntime", "onnxruntime", "trainonce[onnx]"),
        ("onnxruntime", "onnx", "trainonce[onnx]"),
        ("openvino", "openvino", "trainonce[onnx,openvino]"),
    ],
)
def test_a_missing_extra_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, module: str, extra: str
) -> None:
    if module == "onnx":
        pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install '{extra}'" in refused(trainonce("build", run, "--runtime", runtime))
