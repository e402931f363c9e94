"""torch.export: the same network with any batch; files from disk are never loaded."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.damage import flips

from trainonce.errors import RunError, UserError
from trainonce.export import TARGETS, torch_export
from trainonce.export.certificate import ReferenceLogits
from trainonce.export.description import Opened
from trainonce.export.exporting import check_export, export_subnet
from trainonce.export.first_difference import first_difference, layer_outputs
from trainonce.export.integrity import check_file
from trainonce.export.reference import read_reference
from trainonce.records import to_json
from trainonce.run.directory import RunDirectory
from trainonce.subnets import read_subnet, write_subnet

Export = Callable[[int], Any]


@pytest.fixture(scope="module")
def place(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, certificate = export_subnet(exported(2).expected, TARGETS["torch"], tmp_path_factory.mktemp("torch"))
    assert certificate.passed
    return place


def test_torch_alone_computes_the_extracted_network(exported: Export, place: Path) -> None:
    program = torch.export.load(io.BytesIO((place / "model.pt2").read_bytes())).module()
    network, _ = read_subnet(exported(2).subnet)
    for batch in (1, 3):
        x_BCHW = torch.randn(batch, 1, 6, 6)
        with torch.inference_mode():
            torch.testing.assert_close(program(x_BCHW), network(x_BCHW), atol=1e-5, rtol=1e-4)


def test_no_folder_of_this_machine_travels(place: Path) -> None:
    with zipfile.ZipFile(place / "model.pt2") as archive:
        assert all(b"trainonce/nn" not in archive.read(name) for name in archive.namelist())


def test_the_layer_that_differs_is_found(exported: Export, place: Path) -> None:
    opened = torch_export.open_torch_export({"model.pt2": (place / "model.pt2").read_bytes()}, 1, "")
    network, _ = read_subnet(exported(2).subnet)
    x_BCHW = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert first_difference(network, opened, x_BCHW) is None
    with torch.no_grad():
        network.blocks[4].project[0].weight[0, 0] += 10  # type: ignore[index, union-attr]
    found = first_difference(network, opened, x_BCHW)
    assert found is not None
    assert found.layer == "blocks.4"


def test_an_image_with_huge_values_hides_no_layer(exported: Export) -> None:
    network, _ = read_subnet(exported(2).subnet)

    def layers(x_BCHW: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        found = layer_outputs(network, names, x_BCHW)
        off_BCHW = found["blocks.1"].clone()
        off_BCHW[1] += 0.01 * off_BCHW[1].abs().max() + 0.01
        return found | {"blocks.1": off_BCHW}

    x_BCHW = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    x_BCHW[0] *= 1e6
    opened = Opened(description=exported(2).expected.reference.file, run=network, layers=layers)
    found = first_difference(network, opened, x_BCHW)
    assert found is not None
    assert found.layer == "blocks.1"


def test_the_certificate_must_be_of_this_subnet_and_have_passed(exported: Export, place: Path, tmp_path: Path) -> None:
    """The file is not opened, so its hash says what it is only through the certificate."""
    with pytest.raises(UserError, match=r"is of another subnet than .*: its certificate names other weights"):
        check_export(exported(1).expected, TARGETS["torch"], place.parent)
    shutil.copytree(place, tmp_path / "torch")
    said = json.loads((place / "certificate.json").read_text(encoding="utf-8")) | {
        "passed": False,
        "verdict": "it is off",
    }
    (tmp_path / "torch" / "certificate.json").write_bytes(to_json(said))
    with pytest.raises(UserError, match="did not pass when it was made: it is off"):
        check_export(exported(2).expected, TARGETS["torch"], tmp_path)


def test_other_classes_in_the_description_are_noticed(home: RunDirectory, tmp_path: Path) -> None:
    """The .pt2 is not opened, and yet its description is held against the subnet's, as is its certificate's."""
    subnet = tmp_path / "subnet"
    shutil.copytree(home.subnets / "2", subnet, ignore=shutil.ignore_patterns("export*"))
    export_subnet(ReferenceLogits.of(read_reference(subnet, images=2)), TARGETS["torch"], subnet / "export")
    network, description = read_subnet(subnet)
    shutil.move(subnet / "export", tmp_path)
    write_subnet(subnet, network, description | {"classes": description.classes[::-1]})
    reversed_ = ReferenceLogits.of(read_reference(subnet, images=2))
    with pytest.raises(UserError, match="its certificate describes another"):
        check_export(reversed_, TARGETS["torch"], tmp_path / "export")
    path = tmp_path / "export" / "torch" / "certificate.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    assert said.pop("description")["classes"] == description.classes
    path.write_bytes(to_json(said))
    with pytest.raises(UserError, match=r"is of another subnet than .*: it differs in classes$"):
        check_export(reversed_, TARGETS["torch"], tmp_path / "export")


@pytest.mark.parametrize("certified", [True, False])
def test_no_flip_goes_unnoticed(place: Path, tmp_path: Path, certified: bool) -> None:
    content = (place / "model.pt2").read_bytes()
    if certified:
        shutil.copy(place / "certificate.json", tmp_path)
    (tmp_path / "model.pt2").write_bytes(content)
    assert check_file(tmp_path / "model.pt2").state == "whole"
    end = len(content)
    for damaged in (*flips(content, 300), *flips(content, 50, within=(end - 110, end))):
        (tmp_path / "model.pt2").write_bytes(damaged)
        assert check_file(tmp_path / "model.pt2").state == "damaged"
    for length in (end - 1, end - 81, end - 103, end // 2):
        (tmp_path / "model.pt2").write_bytes(content[:length])
        assert check_file(tmp_path / "model.pt2").state == "damaged"


def test_of_an_earlier_file_the_archives_sums_are_looked_at(place: Path, tmp_path: Path) -> None:
    unsealed = (place / "model.pt2").read_bytes()[: -len(torch_export.SEAL.head) - 64 - 2] + b"\0\0"
    earlier = unsealed.replace(b"trainonce-export-2", b"trainonce-export-1")
    rewritten = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(unsealed)) as before, zipfile.ZipFile(rewritten, "w") as after:
        for name in before.namelist():
            after.writestr(name, before.read(name).replace(b"trainonce-export-2", b"trainonce-export-1"))
    path = tmp_path / "model.pt2"
    for content, state in ((unsealed, "damaged"), (earlier, "damaged"), (rewritten.getvalue(), "unchecked")):
        path.write_bytes(content)
        assert check_file(path).state == state


def test_a_file_from_disk_is_not_loaded(exported: Export, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking compares hashes: a .pt2 from elsewhere could unpickle what its author likes."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.export, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    _, certificate = check_export(exported(2).expected, TARGETS["torch"], place.parent)
    assert certificate.verdict.endswith("its hashes are the recorded ones")
    content = (place / "model.pt2").read_bytes()
    try:
        (place / "model.pt2").write_bytes(content[:-1] + b"?")
        with pytest.raises(RunError, match="is damaged or was edited"):
            check_export(exported(2).expected, TARGETS["torch"], place.parent)
    finally:
        (place / "model.pt2").write_bytes(content)
