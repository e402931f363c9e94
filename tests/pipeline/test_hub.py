"""The Hub, played by stand-ins with the real functions' signatures: nothing here talks to a network."""

import inspect
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.export.reference import read_reference
from trainonce.models import MobileNetV3
from trainonce.pipeline.hub import PATH, files_to_push, from_pretrained, push_to_hub, save_pretrained
from trainonce.records import UncheckedWarning, read_json, to_json
from trainonce.subnets import FILES, describe_subnet, read_subnet

huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]


@pytest.fixture(scope="module")
def net(make_net: MakeNet) -> MobileNetV3:
    return make_net(seed=2).eval()


@pytest.fixture(scope="module")
def good(net: MobileNetV3, make_data: MakeData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("subnets") / "good"
    trained = {
        "run": "/home/alice/my runs/pets",
        "data": "pets",
        "provenance": {
            "command": "trainonce import-ofa /home/alice/ofa --data /home/alice/pets",
            "torch": "2.13",
            "imported": {"name": "ofa", "file": "/home/alice/ofa", "sha256": "f00d"},
        },
        "finetuned": None,
    }
    worst = [{"row": 3, "file": "alice_smith/3.jpg", "actual": 0, "taken_for": 1, "probability": 0.9, "of_actual": 0.1}]
    per_class = {"split": "test", "confusion": [], "worst": worst}
    described = describe_subnet(net, net.space.smallest(), make_data())
    description = described | {"trained": trained, "per_class": per_class}
    save_pretrained(net.extract(net.space.smallest()), description, path)
    return path


@pytest.fixture
def saved(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "subnet"))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class FakeHub:
    """Repositories as folders. What is called must fit the real functions' signatures."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.created, self.tokens, self.uploads = root, [], [], []  # type: ignore[var-annotated]
        real_api = huggingface_hub.HfApi
        download = mock.create_autospec(huggingface_hub.snapshot_download, side_effect=self.download)
        api = mock.create_autospec(real_api)
        api.return_value.create_repo.side_effect = self.create
        api.return_value.upload_folder.side_effect = self.upload

        def make_api(*arguments: Any, **keywords: Any) -> Any:
            inspect.signature(real_api).bind(*arguments, **keywords)
            self.tokens.append(keywords.get("token"))
            return api.return_value

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        monkeypatch.setattr(huggingface_hub, "HfApi", make_api)

    def repository(self, name: str) -> Path:
        return self.root / "remote" / name

    def create(self, repo_id: str, **given: Any) -> Any:
        self.created.append((repo_id, given))
        self.repository(repo_id).mkdir(parents=True, exist_ok=given["exist_ok"])
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(self, *, repo_id: str, folder_path: Path, **given: Any) -> Any:
        self.uploads.append(given)
        shutil.copytree(folder_path, self.repository(repo_id), dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    def download(self, repo_id: str, *, allow_patterns: list[str], cache_dir: Path | None = None, **_: Any) -> str:
        there = self.repository(repo_id)
        local = (cache_dir or self.root / "cache") / "snapshots" / "1"
        local.mkdir(parents=True, exist_ok=True)
        names = [str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()]
        for name in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            shutil.copyfile(there / name, local / name)
        return str(local)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(tmp_path, monkeypatch)


class TestLocal:
    def test_a_round_trip_to_the_last_bit(self, net: MobileNetV3, saved: Path, x: Tensor, tmp_path: Path) -> None:
        network, description = from_pretrained(saved)
        save_pretrained(network, description, tmp_path / "again")
        again, described = from_pretrained(str(tmp_path / "again"))
        with torch.inference_mode():
            expected = net(x, net.space.smallest())
            assert torch.equal(network(x), expected)
            assert torch.equal(again(x), expected)
        assert described == description
        for name in FILES:
            assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    def test_needs_no_extra(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert from_pretrained(saved)[1].classes == ["a", "b", "c"]
        for needing in (lambda: from_pretrained("someone/pets"), lambda: push_to_hub(saved, "someone/pets")):
            with pytest.raises(UserError, match=r"needs an extra: pip install 'trainonce\[hub\]'"):
                needing()

    @pytest.mark.parametrize("name", ["./gone", "../gone", "a/b/c", "", "/nowhere", "-", "some one/pets", "a\0b"])
    def test_neither_directory_nor_repository(
        self, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match="is neither a directory nor the name of a repository"):
            from_pretrained(name)


class TestHub:
    def test_push_and_fetch(self, hub: FakeHub, saved: Path, net: MobileNetV3, x: Tensor, tmp_path: Path) -> None:
        (saved / "picture.png").write_bytes(b"a picture")
        (saved / ".notes").write_text("private")
        with (saved / "README.md").open("a") as card:
            card.write("\nEdited by hand.\n")
        before = {path.name: path.read_bytes() for path in saved.iterdir()}
        address = push_to_hub(saved, "someone/pets", private=True, token="hf_x", commit_message="Pets")
        assert address == "https://huggingface.co/someone/pets/commit/1"
        assert hub.tokens == ["hf_x"]
        assert hub.created == [("someone/pets", {"private": True, "repo_type": "model", "exist_ok": True})]
        assert hub.uploads[0]["commit_message"] == "Pets"
        there = hub.repository("someone/pets")
        assert sorted(path.name for path in there.iterdir()) == sorted([*FILES, "picture.png"])
        assert (there / "README.md").read_text().endswith("Edited by hand.\n")
        assert {path.name: path.read_bytes() for path in saved.iterdir()} == before

        network, description = from_pretrained("someone/pets", cache_dir=tmp_path / "here")
        assert not list((tmp_path / "here").rglob("*.png"))
        with torch.inference_mode():
            assert torch.equal(network(x), net(x, net.space.smallest()))
        assert description.trained is not None
        assert description.trained.data == "pets"

    def test_what_names_folders_stays_at_home(self, hub: FakeHub, saved: Path) -> None:
        push_to_hub(saved, "someone/pets")
        for file in hub.repository("someone/pets").iterdir():
            assert b"alice" not in file.read_bytes(), file.name
        assert read_json(saved / "config.json")["trained"]["run"] == "/home/alice/my runs/pets"
        pushed = read_json(hub.repository("someone/pets") / "config.json")
        assert pushed["per_class"]["worst"][0] == {
            "row": 3,
            "file": None,
            "actual": 0,
            "taken_for": 1,
            "probability": 0.9,
            "of_actual": 0.1,
        }
        assert read_json(saved / "config.json")["per_class"]["worst"][0]["file"] == "alice_smith/3.jpg"
        there = pushed["trained"]["provenance"]
        assert there == {"torch": "2.13", "imported": {"name": "ofa", "sha256": "f00d"}}

    def test_certificates_name_no_folders(self, hub: FakeHub, saved: Path) -> None:
        """What they say was not compared comes with a reason, in which there are paths."""
        reference = read_reference(saved)
        reason, no_data = f"not compared: {reference.no_supernet}", f"not compared: {reference.no_data}"
        certificate = {
            "passed": True,
            "verdict": f"supernet {reason}; the exported file's logits are within 1e-06",
            "supernet_and_extracted": reason,
            "extracted_and_exported": {"largest_difference": 1e-6},
            "top1": {"supernet": no_data, "exported": no_data},
            "details": {"kept_in_float32": ["blocks.0", "stem"]},
            "provenance": {"command": "trainonce export /home/alice/pets", "torch": "2.13"},
        }
        assert str(certificate).count("/home/alice/my runs/pets") == 4, "or there is nothing to clean"
        (saved / "export" / "onnx").mkdir(parents=True)
        (saved / "export" / "onnx" / "certificate.json").write_bytes(to_json(certificate))
        push_to_hub(saved, "someone/pets")
        there = read_json(hub.repository("someone/pets") / "export" / "onnx" / "certificate.json")
        assert there == certificate | {
            "verdict": "supernet not compared: …",
            "supernet_and_extracted": "not compared: …",
            "top1": {"supernet": "not compared: …", "exported": "not compared: …"},
            "provenance": {"torch": "2.13"},
        }

    def test_a_certificate_that_is_none(self, hub: FakeHub, saved: Path) -> None:
        (saved / "certificate.json").write_bytes(b'{"a": NaN}')
        with (
            pytest.warns(UncheckedWarning, match=r"certificate\.json has no sum"),
            pytest.raises(UserError, match=r"certificate\.json cannot be uploaded"),
        ):
            push_to_hub(saved, "someone/pets")
        assert hub.created == []

    def test_nothing_fetched_is_executed(self, hub: FakeHub, saved: Path, tmp_path: Path) -> None:
        push_to_hub(saved, "someone/pets")
        trap = f"open({str(tmp_path / 'trapped')!r}, 'w')\n"
        for name in ("model.py", "__init__.py", "sitecustomize.py"):
            (hub.repository("someone/pets") / name).write_text(trap)
        with pytest.raises(UserError, match=r"model\.py is damaged"):
            from_pretrained("someone/pets")
        assert not (tmp_path / "trapped").exists()
        assert not list((tmp_path / "cache").rglob("__init__.py"))

    def test_a_repository_of_something_else(self, hub: FakeHub) -> None:
        hub.repository("someone/bert").mkdir(parents=True)
        (hub.repository("someone/bert") / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(UserError, match="is not a subnet of this format"):
            from_pretrained("someone/bert")

    @pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "model.py"])
    def test_a_damaged_subnet_is_not_pushed(self, hub: FakeHub, saved: Path, damage: str) -> None:
        (saved / damage).write_bytes((saved / damage).read_bytes()[:-9])
        with pytest.raises(UserError, match=damage):
            push_to_hub(saved, "someone/pets")
        assert hub.created == []

    @pytest.mark.parametrize("name", ["", "a/b/c", "some one/pets", "/pets"])
    def test_a_name_that_is_none(self, hub: FakeHub, saved: Path, name: str) -> None:
        with pytest.raises(UserError, match="is not the name of a repository"):
            push_to_hub(saved, name)

    def test_files_to_push(self, saved: Path) -> None:
        (saved / "exported").mkdir()
        (saved / "exported" / "model.xml").write_text("<net/>")
        (saved / "export" / "onnx.failed").mkdir(parents=True)
        (saved / "export" / "onnx.failed" / "model.onnx").write_bytes(b"not to be used")
        (saved / "__pycache__").mkdir()
        (saved / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"names the folder that it was compiled in")
        (saved / ".cache").mkdir()
        (saved / ".cache" / "x").write_text("x")
        assert [str(name) for name in files_to_push(saved)] == sorted([*FILES, "exported/model.xml"])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/alice", "…"),
        ("the images were at /home/alice/my pets and are gone", "the images were at …"),
        ("see '/home/alice/x' (or /y)", "see '…"),
        ("file:///home/alice", "file://…"),
        ("a=/home/alice", "a=…"),
        ("one line\n/home/alice\nanother", "one line\n…"),
        ("float32, (pixel / 255 - mean) / std", None),
        ("mit-han-lab/once-for-all, runs/pets, ../pets", None),
    ],
)
def test_absolute_paths_in_sentences(text: str, left: str | None) -> None:
    assert PATH.sub("…", text) == (text if left is None else left)


def http_error(kind: type[Exception]) -> Exception:
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    return kind("404 Client Error.\n\nMore than one line.", response=response)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: http_error(errors.RepositoryNotFoundError), UserError, "does not exist, or is private"),
        (lambda: http_error(errors.RevisionNotFoundError), UserError, "has no such revision"),
        (lambda: http_error(errors.GatedRepoError), UserError, "asks for permission first"),
        (lambda: http_error(errors.HfHubHTTPError), RunError, "cannot be reached: 404 Client Error"),
        (lambda: errors.HFValidationError("bad name"), UserError, "bad name"),
        (lambda: errors.LocalEntryNotFoundError("offline"), RunError, "cannot be reached: offline"),
        (lambda: errors.OfflineModeIsEnabled("offline"), RunError, "cannot be reached: offline"),
        (lambda: errors.HTTPError("no route"), RunError, "cannot be reached: no route"),
        (lambda: OSError(28, "No space left on device"), RunError, "No space left on device"),
        (lambda: ValueError("Invalid metadata in README.md.\n- bad"), UserError, r"metadata in README\.md\. - bad$"),
    ],
)
def test_what_the_hub_raises_is_a_sentence(
    hub: FakeHub, saved: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Exception], kind: type, says: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise make()

    monkeypatch.setattr(hub, "create", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    huggingface_hub.HfApi().create_repo.side_effect = fail
    for refused in (lambda: from_pretrained("someone/pets"), lambda: push_to_hub(saved, "someone/pets")):
        with pytest.raises(kind, match=says) as raised:
            refused()
        assert "\n" not in str(raised.value)


def test_the_stand_in_refuses_what_the_hub_would(hub: FakeHub) -> None:
    """So the tests above can fail."""
    calls: tuple[Callable[[], object], ...] = (
        lambda: huggingface_hub.snapshot_download(repository="x"),
        lambda: huggingface_hub.HfApi(tokens="x"),
        lambda: huggingface_hub.HfApi().upload_folder("x", folder="y"),
        lambda: huggingface_hub.HfApi().create_repo("x", hidden=True),
    )
    for wrong in calls:
        with pytest.raises(TypeError):
            wrong()


def test_what_is_read_back_is_a_subnet(saved: Path) -> None:
    assert read_subnet(saved)[1].format == "trainonce-subnet-2"
