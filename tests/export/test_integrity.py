"""Whether files are whole: every bit of an ONNX file counts; files of earlier versions."""

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from tests.support.damage import flips

from trainonce.errors import UserError
from trainonce.export import litert, ncnn, sidecar
from trainonce.export.integrity import check_file
from trainonce.export.onnx import FILE, open_onnx
from trainonce.export.predict import open_classifier
from trainonce.pipeline.verifying import verify

Export = Callable[[int], Any]
FLIPS = 300


@pytest.fixture
def place(exported: Export, tmp_path: Path) -> Path:
    """A copy of an export, with its certificate."""
    shutil.copytree(exported(1).place, tmp_path / "onnx")
    return tmp_path / "onnx"


def earlier(content: bytes) -> bytes:
    """The file as it was written before files had seals."""
    model = onnx.load_model_from_string(content)
    del model.metadata_props[1:]
    text = model.metadata_props[0].value
    model.metadata_props[0].value = text.replace("trainonce-export-2", "trainonce-export-1")
    return bytes(model.SerializeToString(deterministic=True))


def test_a_file_that_was_just_written_is_whole(place: Path) -> None:
    assert check_file(place / FILE).state == "whole"
    (place / "certificate.json").unlink()
    found = check_file(place / FILE)
    assert (found.state, found.why) == ("whole", f"{place / FILE} is whole by the hash that it carries")
    (place / FILE).rename(place / "pets.onnx")
    assert check_file(place / "pets.onnx").state == "whole"
    with pytest.raises(UserError, match="does not exist"):
        check_file(place / FILE)


@pytest.mark.parametrize("certified", [True, False])
def test_no_flip_goes_unnoticed(place: Path, certified: bool) -> None:
    if not certified:
        (place / "certificate.json").unlink()
    content = (place / FILE).read_bytes()
    end = len(content)
    for damaged in (*flips(content, FLIPS), *flips(content, 50, within=(end - 86, end))):
        (place / FILE).write_bytes(damaged)
        assert check_file(place / FILE).state == "damaged"
        with pytest.raises(UserError, match=r"model\.onnx is damaged"):
            open_classifier(place / FILE)


def test_no_cut_goes_unnoticed(place: Path) -> None:
    (place / "certificate.json").unlink()
    content = (place / FILE).read_bytes()
    rng = random.Random(0)
    for length in (*(rng.randrange(len(content)) for _ in range(50)), len(content) - 86, len(content) - 1):
        (place / FILE).write_bytes(content[:length])
        with pytest.raises(UserError, match=r"model\.onnx is damaged"):
            open_classifier(place / FILE)


def test_the_file_may_be_written_again_by_others(place: Path) -> None:
    """The seal is an ordinary entry of the metadata at the place where others put it too."""
    (place / "certificate.json").unlink()
    onnx.save_model(onnx.load_model(str(place / FILE)), str(place / FILE))
    assert check_file(place / FILE).state == "whole"


class TestEarlierFiles:
    def test_they_are_believed_where_the_certificate_has_their_hash(self, place: Path) -> None:
        content = earlier((place / FILE).read_bytes())
        (place / FILE).write_bytes(content)
        assert check_file(place / FILE).state == "damaged", "it is not the file of the certificate"
        (place / "certificate.json").unlink()
        found = check_file(place / FILE)
        assert (found.state, found.why) == (
            "unchecked",
            f"{place / FILE} is unchecked: it carries no hash, and no certificate beside it names it",
        )
        classifier = open_classifier(place / FILE)
        assert classifier.unchecked == found.why
        assert classifier.run(torch.zeros(1, 1, 8, 8)).shape == (1, 3)

    def test_a_damaged_description_is_a_sentence(self, place: Path) -> None:
        """Also where a text is not UTF-8 any more, which ONNX Runtime does not mind until it is asked for it."""
        content = earlier((place / FILE).read_bytes())
        start = content.index(b"trainonce-export-1")
        texts = [b"\xff".join((content[:start], content[start + 1 :]))]
        for damaged in (*texts, *flips(content, 100, within=(start - 20, len(content)))):
            with contextlib.suppress(UserError):
                "".join(open_onnx({FILE: damaged}, 1, FILE).description.classes).encode()
        with pytest.raises(UserError, match=r"^model\.onnx: its metadata are not texts"):
            open_onnx({FILE: texts[0]}, 1, FILE)


def test_verify_reads_what_is_for_devices(tmp_path: Path) -> None:
    """A .tflite that says itself what it is, one with a description beside it, and ncnn's two files."""
    program, weights = b"\x1c\0\0\0TFL3 and so on", b"weights"
    files = {
        "litert/model.tflite": litert.SEAL.put(program),
        "micro/model.tflite": program,
        "micro/model.json": sidecar.SEAL.put(b'{"format": "trainonce-export-2"', program),
        "ncnn/model.ncnn.param": ncnn.SEAL.put(b"7767517\n", weights),
        "ncnn/model.ncnn.bin": weights,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    def damaged() -> set[str]:
        found = [finding for name in files for finding in verify(tmp_path / name)]
        return {str(one.path.relative_to(tmp_path)) for one in found if one.state != "whole"}

    assert damaged() == set()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content + b"\n")
        assert damaged() == {other for other in files if other.partition("/")[0] == name.partition("/")[0]}
        (tmp_path / name).write_bytes(content)
