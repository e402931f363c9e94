"""An export that dies before any of its file operations leaves the earlier export, or the new one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.export.conftest import Exported
from tests.support.dying import deaths

from trainonce.export import Target
from trainonce.export.description import Opened, Written
from trainonce.export.exporting import export_subnet


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_export_that_is_replaced(
    exported: Callable[[int], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = exported(0).expected
    found = []

    def target(content: bytes) -> Target:
        return Target(
            name="itself",
            about="",
            files=("file",),
            write=lambda _reference, _max_loss: Written(files={"file": content}),
            open=lambda _files, _threads, _where: Opened(
                description=expected.reference.file, run=expected.reference.network
            ),
        )

    def export(content: bytes, out: Path = tmp_path / "export") -> None:
        export_subnet(expected, target(content), out)

    export(b"old")
    shutil.copytree(tmp_path / "export", tmp_path / "before")

    def check() -> None:
        assert (tmp_path / "export" / "itself" / "certificate.json").is_file()
        found.append((tmp_path / "export" / "itself" / "file").read_bytes())
        export(b"newest")
        assert sorted(path.name for path in (tmp_path / "export" / "itself").iterdir()) == ["certificate.json", "file"]
        shutil.rmtree(tmp_path / "export")
        shutil.copytree(tmp_path / "before", tmp_path / "export")

    assert deaths(lambda: export(b"new"), check) > 10
    assert set(found) == {b"old", b"new"}
