"""`trainonce verify`: of every file whether it is whole, unchecked, foreign or damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.command_line import trainonce
from tests.support.lines import a_score, a_stretch

from trainonce.data import DataSet
from trainonce.errors import UserError
from trainonce.models import MobileNetV3
from trainonce.pipeline.hub import files_to_push
from trainonce.pipeline.verifying import verify
from trainonce.recipes import RECIPES
from trainonce.records import UncheckedWarning, count_file, to_json, write_lines
from trainonce.run import checkpoint
from trainonce.run.directory import RunConfig, RunDirectory
from trainonce.run.exposure import Exposure
from trainonce.subnets import describe_subnet, write_subnet

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_net: MakeNet, make_data: MakeData) -> Path:
    """A run with one file of every kind that is quick to make."""
    run, net, data = RunDirectory(tmp_path_factory.mktemp("made") / "run"), make_net(), make_data()
    config = RunConfig(
        data=data.source,
        data_fingerprint=data.fingerprint(),
        family=net.family,
        model=net.settings.model_dump(mode="json"),
        recipe=RECIPES["rss"].scaled(0.01),
    )
    run.create(config)
    exposure = Exposure(net.space, 1.0, 9.0)
    run.write_exposure(exposure.table())
    state = {"step": 3, "identity": config.identity(), "exposure": {"steps": 3, "lr_sum": 0.1}}
    checkpoint.save(run.checkpoints, 3, {"weights": net.state_dict()}, state)
    for n in range(3):
        run.append_metrics(a_stretch(n))
        run.append_population(a_score(macs=n))
    run.front_file.write_bytes(to_json({"format": "trainonce-front-1"}))
    arch = net.space.smallest()
    write_subnet(run.subnets / "0", net.extract(arch), describe_subnet(net, arch, data))
    return run.path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def states(path: Path, root: Path | None = None) -> dict[str, str]:
    return {str(one.path.relative_to(root or path)): one.state for one in verify(path)}


WHOLE = {
    "checkpoints/step-000003": "whole",
    "exposure.npz": "whole",
    "front.json": "whole",
    "metrics.jsonl": "whole",
    "population.jsonl": "whole",
    "run.json": "whole",
    "subnets/0/README.md": "unchecked",
    "subnets/0/config.json": "whole",
    "subnets/0/model.py": "whole",
    "subnets/0/model.safetensors": "whole",
}


def test_what_was_written_is_whole(run: Path) -> None:
    assert states(run) == WHOLE
    for name, state in WHOLE.items():
        assert states(run / name, run) == {name: state}
    done = trainonce("verify", run)
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1] == "1 unchecked, 9 whole"


@pytest.mark.parametrize(
    "name",
    [name for name in WHOLE if name not in ("subnets/0/README.md", "checkpoints/step-000003")]
    + ["checkpoints/step-000003/state.json", "checkpoints/step-000003/weights.safetensors"],
)
@pytest.mark.parametrize("damage", ["flipped", "cut", "linked to itself"])
def test_damage_is_named_and_nothing_else(run: Path, name: str, damage: str) -> None:
    path, content = run / name, (run / name).read_bytes()
    if damage == "linked to itself":
        path.unlink()
        path.symlink_to(path)
    elif damage == "cut":
        path.write_bytes(content[:-30])
    else:
        path.write_bytes(content[:-30] + bytes([content[-30] ^ 4]) + content[-29:])
    expected = "checkpoints/step-000003" if "checkpoints" in name else name
    assert {place for place, state in states(run).items() if state == "damaged"} >= {expected}
    others = {k: v for k, v in WHOLE.items() if k != expected and not ("config.json" in name and "subnets" in k)}
    assert states(run).items() >= others.items()
    done = trainonce("verify", run, "--json")
    assert done.code == 1
    [found] = [one for one in json.loads(done.out)["files"] if one["path"] == str(run / expected)]
    assert found["state"] == "damaged"
    assert str(run / expected) in found["why"]


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "population.jsonl", "exposure.npz", "run.json", "subnets/0/model.py"]
)
def test_a_lost_file_is_damage(run: Path, name: str) -> None:
    (run / name).unlink()
    assert states(run)[name] == "damaged"


def test_lost_last_lines_are_damage(run: Path) -> None:
    path = run / "population.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert states(run)["population.jsonl"] == "damaged"
    count_file(path).unlink()
    assert states(run)["population.jsonl"] == "whole", "as nothing says that there were more"


def test_another_runs_config_is_damage(run: Path, made: Path) -> None:
    config = RunDirectory(run).config().model_copy(update={"seed": 1})
    (run / "run.json").unlink()
    checkpoints = (run / "checkpoints").rename(run.parent / "aside")
    RunDirectory(run).create(config)
    checkpoints.rename(run / "checkpoints")
    assert states(run) == WHOLE | {"run.json": "damaged"}


def test_what_is_not_ours_is_foreign(run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "subnets" / ".0.0123456789ab.partial").mkdir()
    (run / "other").mkdir()
    (run / "list.json").write_text("{}")
    foreign = {"notes.txt", "subnets/.0.0123456789ab.partial", "other", "list.json"}
    assert states(run) == WHOLE | dict.fromkeys(foreign, "foreign")
    assert trainonce("verify", run).code == 0


def test_a_run_of_before_there_were_sums_is_read_and_said_to_be_unchecked(run: Path) -> None:
    """Files as the version before wrote them."""
    for name in ("run.json", "front.json", "subnets/0/config.json"):
        values = json.loads((run / name).read_bytes())
        del values["sum"]
        (run / name).write_text(json.dumps(values, indent=2) + "\n")
    for name in ("metrics.jsonl", "population.jsonl"):
        lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
        (run / name).write_text("".join(json.dumps({k: v for k, v in x.items() if k != "sum"}) + "\n" for x in lines))
        count_file(run / name).unlink()
    old = {"run.json", "front.json", "subnets/0/config.json", "metrics.jsonl", "population.jsonl"}
    assert states(run) == WHOLE | dict.fromkeys(old, "unchecked")
    directory = RunDirectory(run)
    with pytest.warns(UncheckedWarning, match=r"population\.jsonl has no sums: it is read unchecked"):
        assert [line.macs for line in directory.population()] == [0, 1, 2]
    with pytest.warns(UncheckedWarning, match=r"run\.json has no sum: it is read unchecked"):
        loaded = directory.load_supernet()
    assert loaded[1] == 3
    directory.append_population(a_score(macs=3))
    with pytest.warns(UserWarning, match="no sums up to line 3"):
        assert len(directory.population()) == 4


def test_what_is_nothing_is_refused(tmp_path: Path) -> None:
    for path, says in (
        (tmp_path, "neither a run, a study, a subnet nor an export"),
        (tmp_path / "x", "does not exist"),
    ):
        with pytest.raises(UserError, match=says):
            verify(path)


def test_a_damaged_export_is_not_pushed(run: Path) -> None:
    subnet, place = run / "subnets" / "0", run / "subnets" / "0" / "export" / "onnx"
    place.mkdir(parents=True)
    (place / "certificate.json").write_text("{")
    with pytest.raises(UserError, match=r"certificate\.json is not a JSON file"):
        files_to_push(subnet)
    place.rename(place.with_name("onnx.failed"))
    assert len(files_to_push(subnet)) == 4


def test_a_study(tmp_path: Path) -> None:
    for name in ("results.jsonl", "times.jsonl"):
        write_lines(tmp_path / name, [{"run": "a"}, {"run": "b"}])
    (tmp_path / "study.json").write_text('{"name": "x"}')
    assert states(tmp_path) == {"results.jsonl": "whole", "study.json": "unchecked", "times.jsonl": "whole"}
    (tmp_path / "results.jsonl").unlink()
    assert states(tmp_path)["results.jsonl"] == "damaged"


def test_no_flip_of_an_exposure_file_changes_what_is_read(tmp_path: Path, make_net: MakeNet) -> None:
    """The archive's sums cover its members; what they leave out (its directory) changes nothing or is refused."""
    run = RunDirectory(tmp_path)
    run.write_exposure(Exposure(make_net().space, 1.0, 9.0).table())
    content, expected = run.exposure_file.read_bytes(), vars(run.exposure())
    places = [*range(200), *range(content.index(b"PK\x01\x02"), len(content))]
    for place in places:
        for bit in range(8):
            run.exposure_file.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            try:
                found: dict[str, Any] = vars(run.exposure())
            except UserError:
                continue
            assert all(np.array_equal(found[name], expected[name]) for name in expected), (place, bit)
