"""A folder measures another machine: its program alone, without trainonce; what comes back is a table as any other."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.command_line import trainonce

from trainonce.data import DataSource
from trainonce.errors import UserError
from trainonce.latency import BuildSettings, LatencyTable, bench, build_table, pack_bench, unpack_table
from trainonce.latency.bench import BenchError, hash_of, measure_folder
from trainonce.latency.build import make_plan
from trainonce.latency.packing import hollowed
from trainonce.latency.parts import sized_network
from trainonce.latency.runtimes import model_files
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES
from trainonce.run.directory import RunConfig, RunDirectory

pytest.importorskip("onnxruntime")
MakeNet = Callable[..., MobileNetV3]
SMALL: dict[str, Any] = {"depths": (1,), "kernel_sizes": (3,), "strides": (1, 2, 2, 1, 1)}
FEW = {"networks": 10, "held_out": 5, "rounds": 1}


@pytest.fixture(scope="module")
def net(make_net: MakeNet) -> MobileNetV3:
    return make_net(**SMALL)


@pytest.fixture(scope="module")
def packed(net: MobileNetV3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "folder"
    size = pack_bench(net, BuildSettings(**FEW), out)
    assert size == sum(path.stat().st_size for path in out.iterdir())
    return out


@pytest.fixture(scope="module")
def measured(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after its program ran where nothing of trainonce can be imported."""
    folder = Path(shutil.copytree(packed, tmp_path_factory.mktemp("there") / "folder"))
    site = Path(np.__file__).parent.parent
    blocked = "import sys; sys.modules['trainonce'] = sys.modules['torch'] = None; "
    program = f"{blocked}import runpy; sys.argv = ['measure.py']; runpy.run_path({str(folder / 'measure.py')!r}, "
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.append({str(site)!r}); {program}run_name='__main__')",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "about 1 min; the machine best does nothing else" in done.stdout
    assert "3/3 done" in done.stdout
    assert "Wrote" in done.stdout
    return folder


def test_the_table_is_as_that_of_build(net: MobileNetV3, measured: Path) -> None:
    built, table = build_table(net, BuildSettings(**FEW)), unpack_table(measured, net)
    assert unpack_table(measured / "result.json", net) == table
    same = ("format", "runtime", "threads", "batch", "resolutions", "settings", "machine")
    assert [getattr(table, name) for name in same] == [getattr(built, name) for name in same]
    assert [entry.part for entry in table.parts] == [entry.part for entry in built.parts]
    assert table.versions == built.versions
    assert (table.error.networks, table.repeat.networks) == (built.error.networks, built.repeat.networks)
    for spec in make_plan(net, BuildSettings(**FEW)).networks:
        assert 0.02 < table.predict_ms(spec) / built.predict_ms(spec) < 50, "the machine is the same"


def test_the_program_needs_numpy_alone_and_python_3_9(packed: Path) -> None:
    text = (packed / "measure.py").read_text()
    assert text == Path(bench.__file__).read_text()
    tree = ast.parse(text, feature_version=(3, 9))
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).split(".")[0] for name in imported} <= {*sys.stdlib_module_names, "numpy"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "zip"]
    assert not [call for call in calls if call.keywords], "zip(strict=True) is Python 3.10"


def test_a_model_is_what_it_was_but_for_its_weights(net: MobileNetV3) -> None:
    made = model_files("onnxruntime", sized_network(net.describe(net.space.largest())), (1, 1, 8, 8))
    (content,) = made.files.values()
    template, holes = hollowed(content, made.weights)
    again = bench.filled(template, holes)
    assert len(again) == len(content)
    assert len(template) < 0.2 * len(content)
    in_holes = sum(4 * count for _, count, _, _ in holes)
    assert len(content) == len(template) + in_holes
    session_of = bench.RUNTIMES["onnxruntime"][0](1)
    logits: Any = session_of({"model.onnx": again}, (1, 1, 8, 8))()
    assert 1e-4 < np.abs(logits[0]).max() < 1e4


def test_holes_of_integers_are_filled_with_integers() -> None:
    weights = np.arange(-64, 64, dtype=np.int8)
    template, holes = hollowed(b"before" + weights.tobytes() + b"after", [weights])
    assert template == b"beforeafter"
    assert holes == [[6, 128, "int8", 64.0]]
    again = bench.filled(template, holes)
    found = np.frombuffer(again[6:-5], np.int8)
    assert (again[:6], again[-5:], len(found)) == (b"before", b"after", 128)
    assert 30 < np.abs(found).max() <= 64


class TestThere:
    """What happens on the other machine."""

    def test_a_stopped_one_goes_on(self, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = Path(shutil.copytree(packed, tmp_path / "folder"))
        real, seen = bench.Bench.networks, list[int]()

        def networks(at: bench.Bench, number: int, *more: Any) -> Any:
            seen.append(number)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return real(at, number, *more)

        monkeypatch.setattr(bench.Bench, "networks", networks)
        with pytest.raises(KeyboardInterrupt):
            measure_folder(folder, say=lambda _: None)
        with (folder / "measured.jsonl").open("ab") as file:
            file.write(b'{"number": 2, "anch')  # half a line
        with pytest.raises(UserError, match=r"there is no .*result\.json: 2 measurements are in measured\.jsonl"):
            unpack_table(folder, None)  # type: ignore[arg-type]
        measure_folder(folder, say=lambda _: None)
        assert seen == [1, 2, 2]
        lines = (folder / "measured.jsonl").read_text().splitlines()
        (folder / "measured.jsonl").write_text(
            "\n".join([lines[0], lines[1].replace("parts", "party"), *lines[2:], ""])
        )
        with pytest.raises(BenchError, match="line 2 is damaged: delete the file"):
            measure_folder(folder, say=lambda _: None)

    def test_what_is_wrong_with_a_folder_is_a_sentence(self, packed: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(packed, tmp_path / "folder"))
        text = (folder / "plan.json").read_text()
        for other, sentence in [
            (text.replace('"rounds": 1', '"rounds": 2'), "is damaged or was edited: pack the folder again"),
            (text[:50], r"plan\.json is damaged"),
            ("{}", "is not a plan of `trainonce latency pack`"),
        ]:
            (folder / "plan.json").write_text(other)
            with pytest.raises(BenchError, match=sentence):
                measure_folder(folder)
        (folder / "plan.json").write_text(text)
        models = (folder / "models.zip").read_bytes()
        (folder / "models.zip").write_bytes(models[: len(models) // 2])
        with pytest.raises(BenchError, match=r"models\.zip is damaged or missing"):
            measure_folder(folder, say=lambda _: None)

    def test_a_missing_runtime_is_named(self, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(BenchError, match="this needs the packages onnxruntime and numpy"):
            measure_folder(packed)


class TestBack:
    """What does not come back as it was."""

    def test_what_is_no_result_is_a_sentence(self, net: MobileNetV3, measured: Path, tmp_path: Path) -> None:
        text = (measured / "result.json").read_text()
        path = tmp_path / "result.json"
        with pytest.raises(UserError, match=r"there is no .*: run measure\.py of the packed folder"):
            unpack_table(tmp_path, net)
        for other, sentence in [
            (text[:-9], "is damaged or no result of a packed folder"),
            ("[]", "is not a result of a folder"),
            ('{"format": "trainonce-latency-1"}', "is not a result of a folder"),
            (text.replace('"cores": ', '"cores": 1'), "is damaged or was edited"),
        ]:
            path.write_text(other)
            with pytest.raises(UserError, match=sentence):
                unpack_table(path, net)
        values = json.loads(text)
        values.pop("sha256")
        shorter = {**values, "lines": values["lines"][:-1]}
        path.write_text(json.dumps({**shorter, "sha256": hash_of(shorter)}))
        with pytest.raises(UserError, match="it has other measurements than its plan names"):
            unpack_table(path, net)
        wrong = {**values, "settings": {**values["settings"], "rounds": -1}}
        path.write_text(json.dumps({**wrong, "sha256": hash_of(wrong)}))
        with pytest.raises(UserError, match=r"result\.json: settings\.rounds"):
            unpack_table(path, net)

    def test_another_space_is_a_sentence(self, make_net: MakeNet, measured: Path) -> None:
        with pytest.raises(UserError, match="is of another space than this run's"):
            unpack_table(measured, make_net(**SMALL, num_classes=4))


def test_what_cannot_be_packed_is_a_sentence(net: MobileNetV3, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(UserError, match="is there and not empty: name another folder"):
        pack_bench(net, BuildSettings(**FEW), tmp_path / "there")
    with pytest.raises(UserError, match="torch runs modules, not files: choose another runtime"):
        pack_bench(net, BuildSettings(runtime="torch", **FEW), tmp_path / "torch")


def test_the_commands(net: MobileNetV3, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "run")
    config = RunConfig(
        data=DataSource(name_or_path="digits"),
        data_fingerprint="",
        family=net.family,
        model=net.settings.model_dump(mode="json"),
        recipe=RECIPES["rss"],
    )
    run.create(config)
    monkeypatch.setattr(BuildSettings, "quick", classmethod(lambda cls, **fields: cls(**{**FEW, **fields})))
    packed = trainonce("latency", "pack", run.path, "--out", tmp_path / "folder", "--quick", "--json")
    assert packed.code == 0, packed.err
    assert json.loads(packed.out)["bytes"] < 200_000
    unpacked = trainonce("latency", "unpack", measured, run.path)
    assert unpacked.code == 0, unpacked.err
    path = run.latency / "onnxruntime-1-1.json"
    table = LatencyTable.read(path)
    assert table == unpack_table(measured, net)
    assert str(table.error) in unpacked.out
    table.model_copy(update={"machine": {"cpu": "an abacus", "cores": 1, "system": "wood"}}).write(path)
    refused = trainonce("latency", "unpack", measured, run.path)
    refused.refused("is the table of another machine: name this one with --out")
    assert trainonce("latency", "unpack", measured, run.path, "--out", tmp_path / "mine.json").code == 0


@pytest.mark.export
@pytest.mark.parametrize(
    ("runtime", "module"), [("litert", "ai_edge_litert"), ("litert-int8", "ai_edge_litert"), ("ncnn", "ncnn")]
)
def test_other_runtimes(net: MobileNetV3, tmp_path: Path, runtime: str, module: str) -> None:
    pytest.importorskip(module)
    pack_bench(net, BuildSettings(runtime=runtime, **FEW), tmp_path / "folder")
    measure_folder(tmp_path / "folder", say=lambda _: None)
    table = unpack_table(tmp_path / "folder", net)
    assert table.runtime == runtime
    assert all(entry.alone_ms and entry.alone_ms > 0 for entry in table.parts)
