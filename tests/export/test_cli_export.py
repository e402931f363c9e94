"""The command: several targets, a place that cannot be written, and being stopped."""

import dataclasses
import errno
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.command_line import trainonce
from tests.support.made_up import shifted

from trainonce.errors import UserError
from trainonce.export import TARGETS, exporting, extras
from trainonce.run.directory import RunDirectory


@pytest.fixture
def subnet(home: RunDirectory, tmp_path: Path) -> Path:
    """A subnet alone, without its run."""
    return Path(shutil.copytree(home.subnets / "0", tmp_path / "subnet", ignore=shutil.ignore_patterns("export*")))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Add a target of this name whose file is right, and whose writing first calls `before`."""

    def add(name: str, before: Callable[[], object] = lambda: None) -> None:
        target = shifted(0.0)

        def write(reference: Any, max_loss: float) -> Any:
            before()
            return target.write(reference, max_loss)

        monkeypatch.setitem(TARGETS, name, dataclasses.replace(target, name=name, write=write))

    return add


def refuse() -> None:
    raise UserError("it needs an extra")


def test_a_target_that_fails_keeps_no_other_from_being_written(subnet: Path, made_up: Callable[..., None]) -> None:
    made_up("a")
    made_up("b", refuse)
    made_up("c")
    result = trainonce("export", subnet, "--to", "a", "--to", "b", "--to", "c")
    result.refused("^trainonce: 1 of 3 targets failed$", code=1)
    assert "b failed: it needs an extra." in result.err.splitlines()
    assert [line.split(":")[0] for line in result.out.splitlines() if "agree" in line or "within" in line] == ["a", "c"]
    assert sorted(path.name for path in (subnet / "export").iterdir()) == ["a", "c"]
    result = trainonce("export", subnet, "--to", "a", "--to", "b", "--to", "c", "--json")
    said = json.loads(result.out)
    assert result.code == 1
    assert [entry["certificate"]["target"] for entry in said["exports"]] == ["a", "c"]
    assert said["failed"] == {"b": "it needs an extra"}
    trainonce("export", subnet, "--to", "b").refused("^trainonce: it needs an extra$", code=2)


def test_a_missing_extra_is_said_before_any_work(
    subnet: Path, made_up: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in ("openvino", "ncnn") else name)
    made_up("a")
    result = trainonce("export", subnet, "--to", "a", "--to", "openvino")
    result.refused("^trainonce: 1 of 2 targets failed$", code=1)
    said = result.err.splitlines()
    (missing,) = (number for number, line in enumerate(said) if line.startswith("openvino failed: openvino needs an"))
    assert missing < next(number for number, line in enumerate(said) if line.startswith("computing the network"))
    assert "pip install 'trainonce[openvino]'" in said[missing]
    result = trainonce("export", subnet, "--to", "ncnn", "--to", "openvino")
    result.refused("^trainonce: 2 of 2 targets failed$", code=1)
    assert "computing" not in result.err
    trainonce("export", subnet, "--to", "ncnn").refused(r"^trainonce: ncnn needs an extra: .*trainonce\[ncnn\]")


def test_of_several_files_that_are_checked_each_gets_its_verdict(subnet: Path, made_up: Callable[..., None]) -> None:
    made_up("a")
    made_up("b")
    assert trainonce("export", subnet, "--to", "a", "--to", "b").code == 0
    (subnet / "export" / "a" / "file").write_bytes(b"contents")
    result = trainonce("export", subnet, "--to", "a", "--to", "b", "--check")
    result.refused("^trainonce: 1 of 2 targets failed$", code=1)
    assert "file is damaged or was replaced" in result.err
    assert result.out.startswith("b: ")


def test_checking_where_nothing_can_be_written(
    subnet: Path, made_up: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up("a")
    trainonce("export", subnet, "--to", "a")
    path = subnet / "export" / "a" / "certificate.json"
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "write_atomic", refuse)
        result = trainonce("export", subnet, "--to", "a", "--check")
    assert result.code == 0, result.err
    assert result.out.startswith("a: ")
    assert f"The certificate was not renewed: cannot write {path}: Read-only file system." in result.err
    assert path.read_bytes() == before
    result = trainonce("export", subnet, "--to", "a", "--check", "--images", "3")
    assert "not renewed" not in result.err
    assert json.loads(path.read_bytes())["images"]["random"] == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_says_what_is_written(subnet: Path, made_up: Callable[..., None], number: int, code: int) -> None:
    made_up("a")
    made_up("b", lambda: signal.raise_signal(number))
    made_up("c")
    before = signal.getsignal(number)
    result = trainonce("export", subnet, "--to", "a", "--to", "b", "--to", "c")
    written = subnet / "export" / "a" / "file"
    result.refused(
        f"^trainonce: stopped; {written} and the certificate are written; go on with --to b --to c$", code=code
    )
    assert [path.name for path in (subnet / "export").iterdir()] == ["a"]
    assert signal.getsignal(number) == before
    trainonce("export", subnet, "--to", "b", "--to", "c").refused(
        "^trainonce: stopped; nothing is written; go", code=code
    )


def test_a_check_that_is_stopped_changes_nothing(
    subnet: Path, made_up: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up("a")
    trainonce("export", subnet, "--to", "a")
    monkeypatch.setattr(exporting, "judged", lambda *_: signal.raise_signal(signal.SIGINT))
    result = trainonce("export", subnet, "--to", "a", "--check")
    result.refused("^trainonce: stopped; the files are as they were; not checked: --to a$", code=130)
