"""ncnn files, by ncnn's own interface."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.conftest import of_a_resnet
from tests.support.damage import flips

from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.export import TARGETS
from trainonce.export.exporting import check_export, export_subnet
from trainonce.export.integrity import check_file
from trainonce.export.ncnn import BIN, NOTE, PARAM, SEAL, open_ncnn
from trainonce.subnets import read_subnet

Export = Callable[[int], Any]


@pytest.fixture(autouse=True)
def runtime(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("export"):
        pytest.importorskip("ncnn")
        pytest.importorskip("pnnx")


@pytest.fixture(scope="module")
def place(exported: Export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, certificate = export_subnet(exported(1).expected, TARGETS["ncnn"], tmp_path_factory.mktemp("ncnn"))
    assert certificate.passed
    assert certificate.supernet_and_extracted.identical  # type: ignore[union-attr]
    return place


def files_of(place: Path) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in (PARAM, BIN)}


def resealed(files: dict[str, bytes], old: bytes, new: bytes) -> dict[str, bytes]:
    """The files with something else in the .param, and the hash that is right for it."""
    body = files[PARAM].rpartition(SEAL.head)[0]
    assert old in body
    return {PARAM: SEAL.put(body.replace(old, new), files[BIN]), BIN: files[BIN]}


@pytest.mark.export
class TestFiles:
    def test_they_compute_the_extracted_network(self, exported: Export, place: Path) -> None:
        import ncnn

        net = ncnn.Net()
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        assert net.load_param(str(place / PARAM)) == net.load_model(str(place / BIN)) == 0
        network, _ = read_subnet(exported(1).subnet)
        for seed in range(3):
            x_1CHW = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
            extractor = net.create_extractor()
            extractor.input("images", ncnn.Mat(x_1CHW[0].numpy()))
            _, found = extractor.extract("logits")
            with torch.inference_mode():
                expected = network(x_1CHW)[0]
            np.testing.assert_allclose(np.array(found), expected, atol=1e-4 * float(expected.abs().max()), rtol=0)

    def test_the_description_stands_after_the_layers(self, exported: Export, place: Path) -> None:
        lines = (place / PARAM).read_text(encoding="utf-8").splitlines()
        layers = int(lines[1].split()[0])
        said = json.loads(lines[2 + layers].removeprefix(NOTE))
        assert said["classes"] == list(exported(1).expected.reference.file.classes)
        assert len(lines) == 2 + layers + 2

    def test_what_is_none_is_a_sentence(self, exported: Export, place: Path, tmp_path: Path) -> None:
        files = files_of(place)
        for name in (PARAM, BIN):
            with pytest.raises(UserError, match=r"^x is damaged or was not written by `trainonce export`"):
                open_ncnn({**files, name: files[name][:-9]}, 1, "x")
        with pytest.raises(UserError, match=r"^x is not an ncnn file that can be computed here: it has a layer"):
            open_ncnn(resealed(files, b"\nConvolution ", b"\nNoSuchLayer "), 1, "x")
        with pytest.raises(UserError, match=r"^x: its description is not JSON"):
            open_ncnn(resealed(files, b'{"format"', b'{{"format"'), 1, "x")
        with pytest.raises(UserError, match=r"^x is not an ncnn file that can be computed here"):
            open_ncnn(resealed(files, NOTE.encode(), b"# elsewhere "), 1, "x")
        with pytest.raises(UserError, match=r"^x takes and gives other shapes than its description says"):
            open_ncnn(resealed(files, b'"classes": ["', b'"classes": ["one more", "'), 1, "x")
        with pytest.raises(
            UserError, match=r"^x cannot be computed: it takes images of \(1, 8, 8\), not of \(1, 6, 6\)"
        ):
            open_ncnn(files, 1, "x").run(torch.zeros(1, 1, 6, 6))
        shutil.copytree(place, tmp_path / "ncnn")
        (tmp_path / "ncnn" / BIN).write_bytes(files[BIN][:-4])
        with pytest.raises(RunError, match=r"model\.ncnn\.(param|bin) is damaged or was edited"):
            check_export(exported(1).expected, TARGETS["ncnn"], tmp_path)

    @pytest.mark.parametrize("certified", [True, False])
    @pytest.mark.parametrize("name", [PARAM, BIN])
    def test_no_flip_goes_unnoticed(self, place: Path, tmp_path: Path, name: str, certified: bool) -> None:
        copy = Path(shutil.copytree(place, tmp_path / "ncnn"))
        if not certified:
            (copy / "certificate.json").unlink()
        assert {check_file(copy / file).state for file in (PARAM, BIN)} == {"whole"}
        content = (copy / name).read_bytes()
        ends = flips(content, 50, within=(len(content) - 110, len(content)))
        for damaged in (*flips(content, 100), *ends, content[:-1], content[:-80], b""):
            (copy / name).write_bytes(damaged)
            assert check_file(copy / name).state == "damaged"

    def test_half(self, exported: Export, place: Path, tmp_path: Path) -> None:
        half, certificate = export_subnet(exported(1).expected, TARGETS["ncnn-fp16"], tmp_path, max_loss=100)
        assert certificate.passed
        assert certificate.precision == "float16"
        assert certificate.extracted_and_exported.largest_difference > 0  # type: ignore[union-attr,operator]
        assert (half / BIN).stat().st_size < 0.6 * (place / BIN).stat().st_size

    def test_a_network_that_pnnx_cannot_write_is_a_sentence(self, exported: Export, tmp_path: Path) -> None:
        reference = dataclasses.replace(exported(1).expected.reference)
        broken = exported(1).expected.reference.onnx.replace(b"HardSwish", b"HardSwist")
        reference.__dict__["onnx"] = broken
        with pytest.raises(UserError, match=r"model\.onnx is not an ONNX file that can be computed here"):
            TARGETS["ncnn"].write(reference, 1)

    def test_the_resnet_family(self, make_data: Callable[..., DataSet], tmp_path: Path) -> None:
        _, certificate = export_subnet(of_a_resnet(make_data(), tmp_path / "subnet"), TARGETS["ncnn"], tmp_path)
        assert certificate.passed


def test_a_bare_file_is_unknown(tmp_path: Path) -> None:
    (tmp_path / PARAM).write_bytes(b"7767517\n1 1\nInput in0 0 1 in0\n")
    (tmp_path / BIN).write_bytes(b"weights")
    assert {check_file(tmp_path / name).state for name in (PARAM, BIN)} == {"damaged"}
