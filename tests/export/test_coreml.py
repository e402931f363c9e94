"""Core ML's package, which nothing computes here: what it holds, and that nobody says it passed."""

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.conftest import of_a_resnet
from tests.support.damage import flips
from torch import nn

from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.export import TARGETS
from trainonce.export.coreml import FILE, PACKAGE, PARTS, description_in, open_coreml
from trainonce.export.exporting import check_export, export_subnet, renew
from trainonce.export.integrity import check_file

Export = Callable[[int], Any]


@pytest.fixture(scope="module")
def place(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("coremltools")
    place, certificate = export_subnet(exported(1).expected, TARGETS["coreml"], tmp_path_factory.mktemp("coreml"))
    assert certificate.passed is None
    return place


@pytest.mark.export
class TestPackage:
    def test_the_certificate_never_says_that_it_passed(self, exported: Export, place: Path) -> None:
        """When it is made and when it is checked; supernet and network are compared all the same."""
        said = json.loads((place / "certificate.json").read_text(encoding="utf-8"))
        assert said["passed"] is None
        assert said["supernet_and_extracted"]["identical"]
        assert said["extracted_and_exported"].startswith("not compared: not run here")
        assert said["verdict"].endswith("not run here: Core ML computes on Apple's systems alone")
        assert said["top1"]["exported"] == "not compared"
        assert "exported" not in said["latency_ms"]
        _, checked = check_export(exported(1).expected, TARGETS["coreml"], place.parent)
        assert checked.passed is None
        renew(place, checked)
        assert json.loads((place / "certificate.json").read_text(encoding="utf-8")) == said

    def test_coremltools_reads_what_it_holds(self, exported: Export, place: Path, tmp_path: Path) -> None:
        """Ends, description, operators and weights."""
        import coremltools

        with zipfile.ZipFile(place / FILE) as archive:
            assert archive.namelist() == ["trainonce.json", *(f"{PACKAGE}/{name}" for name in PARTS)]
            archive.extractall(tmp_path)
            said = json.loads(archive.read("trainonce.json"))
        spec = coremltools.models.MLModel(str(tmp_path / PACKAGE), skip_model_load=True).get_spec()
        (given,), (returned,) = spec.description.input, spec.description.output
        assert (given.name, list(given.type.multiArrayType.shape)) == ("images", [1, 1, 8, 8])
        assert (returned.name, list(returned.type.multiArrayType.shape)) == ("logits", [1, 3])
        assert json.loads(spec.description.metadata.userDefined["trainonce"]) == said
        assert said["classes"] == list(exported(1).expected.reference.file.classes)
        operators = [op.type for op in spec.mlProgram.functions["main"].block_specializations["CoreML5"].operations]
        network: nn.Module = exported(1).expected.reference.network
        assert operators.count("conv") == sum(isinstance(module, nn.Conv2d) for module in network.modules())
        weights = (tmp_path / PACKAGE / PARTS[2]).read_bytes()
        classifier = network.get_submodule("classifier").weight.detach()  # type: ignore[operator]
        assert classifier.numpy().tobytes() in weights
        assert str(Path(__file__).parents[2]).encode() not in (place / FILE).read_bytes()

    def test_what_is_none_is_a_sentence(self, exported: Export, place: Path, tmp_path: Path) -> None:
        content = (place / FILE).read_bytes()
        for damaged in (content[:100], b"no archive", content[:-500]):
            with pytest.raises(UserError, match=r"^x does not hold a description that can be read"):
                description_in({FILE: damaged}, "x")
        with pytest.raises(UserError, match=r"^x is not run here"):
            open_coreml({FILE: content}, 1, "x")
        shutil.copytree(place, tmp_path / "coreml")
        (tmp_path / "coreml" / FILE).write_bytes(content[:-1])
        with pytest.raises(RunError, match=r"model\.mlpackage\.zip is damaged or was edited"):
            check_export(exported(1).expected, TARGETS["coreml"], tmp_path)
        with pytest.raises(UserError, match="is of another subnet than"):
            check_export(exported(0).expected, TARGETS["coreml"], place.parent)

    @pytest.mark.parametrize("certified", [True, False])
    def test_no_flip_goes_unnoticed(self, place: Path, tmp_path: Path, certified: bool) -> None:
        copy = Path(shutil.copytree(place, tmp_path / "coreml"))
        if not certified:
            (copy / "certificate.json").unlink()
        content = (copy / FILE).read_bytes()
        assert check_file(copy / FILE).state == "whole"
        ends = flips(content, 50, within=(len(content) - 110, len(content)))
        for damaged in (*flips(content, 150), *ends, content[:-1], content[:-103], b""):
            (copy / FILE).write_bytes(damaged)
            assert check_file(copy / FILE).state == "damaged"

    def test_the_resnet_family(self, make_data: Callable[..., DataSet], tmp_path: Path) -> None:
        pytest.importorskip("coremltools")
        _, certificate = export_subnet(of_a_resnet(make_data(), tmp_path / "subnet"), TARGETS["coreml"], tmp_path)
        assert certificate.passed is None

    def test_a_subnet_that_is_not_the_supernets_fails(self, exported: Export, tmp_path: Path) -> None:
        """What can be compared decides: an extracted network that is not the supernet's is refused."""
        pytest.importorskip("coremltools")
        expected = exported(0).expected
        off = tuple(None if part is None else part + 1 for part in expected.supernet)
        with pytest.raises(RunError, match="the extracted network is not the supernet's subnet"):
            export_subnet(dataclasses.replace(expected, supernet=off), TARGETS["coreml"], tmp_path)
        assert (tmp_path / "coreml.failed" / FILE).is_file()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # coremltools leaves a folder
    def test_what_cannot_be_written_is_a_sentence(self, exported: Export) -> None:
        class Bessel(nn.Module):
            def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
                found: torch.Tensor = torch.special.i0(x_BCHW).mean((2, 3)).expand(-1, 3)
                return found

        pytest.importorskip("coremltools")
        reference = dataclasses.replace(exported(1).expected.reference, network=Bessel().eval())
        with pytest.raises(UserError, match=r"^coremltools writes no package of this network: "):
            TARGETS["coreml"].write(reference, 1)


def test_a_bare_archive_is_unknown(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / FILE, "w") as archive:
        archive.writestr("Manifest.json", "{}")
    assert check_file(tmp_path / FILE).state == "damaged"
