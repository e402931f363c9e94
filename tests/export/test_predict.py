"""Predicting: images are treated as in training, and torch and the ONNX file give the same answer."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.support.command_line import trainonce

from trainonce.data import load_dataset
from trainonce.data.augment import normalise
from trainonce.export.predict import open_classifier
from trainonce.models import MobileNetV3, MobileNetV3Settings
from trainonce.nn.plain import resize
from trainonce.subnets import describe_subnet, read_subnet, write_subnet

SIZE, RESOLUTION = 12, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes: PNG and JPEG, colour, grey, with transparency, of many sizes, one lying on its side."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (path / name).mkdir()
        for i in range(8):
            size = tuple(int(n) for n in rng.integers(8, 40, 2))
            mode = ("RGB", "L", "RGBA", "P")[i % 4]
            image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
            image.save(path / name / f"{i}.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path / name / "9.jpg", exif=exif)
    return path


@pytest.fixture(scope="module")
def subnet(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A subnet for images of 12 pixels that it resizes to 8."""
    data = load_dataset(str(folder), image_size=SIZE)
    settings = MobileNetV3Settings(
        num_classes=2, resolutions=(RESOLUTION, SIZE), width_mult=0.25, depths=(1,), kernel_sizes=(3,)
    )
    net = MobileNetV3(settings, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.2 * torch.rand(tensor.shape, generator=generator)
    arch = net.space.smallest()
    description = describe_subnet(net, arch, data)
    path = tmp_path_factory.mktemp("subnet") / "subnet"
    write_subnet(path, net.extract(arch), description)
    return path


@pytest.fixture(scope="module")
def onnx_file(subnet: Path) -> Path:
    code, out, err = trainonce("export", subnet, "--to", "onnx", "--images", "4", "--json")
    assert code == 0, err
    assert "not compared" in err
    return Path(json.loads(out)["exports"][0]["path"])


def test_images_are_treated_as_in_training(folder: Path, subnet: Path) -> None:
    """Every file's input is the data set's own, to the last bit."""
    data = load_dataset(str(folder), image_size=SIZE)
    images = torch.cat([split.images for split in (data.train, data.calibrate, data.validate, data.test)])
    known = {tuple(x.flatten().tolist()) for x in resize(normalise(images, mean=data.mean, std=data.std), RESOLUTION)}
    classifier = open_classifier(subnet)
    files = sorted(folder.rglob("*.*"))
    assert len(files) == len(images) == 18
    found = {tuple(classifier.prepared(path).flatten().tolist()) for path in files}
    assert len(found) == 18
    assert found == known


def test_torch_and_onnx_give_the_same_answer(folder: Path, subnet: Path, onnx_file: Path) -> None:
    files = sorted(folder.rglob("*.*"))
    answers = []
    for model in (subnet, onnx_file):
        code, out, err = trainonce("predict", model, *files, "--top", "2", "--json")
        assert code == 0, err
        answers.append(json.loads(out)["predictions"])
    for a, b in zip(*answers, strict=True):
        assert a["image"] == b["image"]
        assert [c["class"] for c in a["classes"]] == [c["class"] for c in b["classes"]]
        for one, other in zip(a["classes"], b["classes"], strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)
        assert sum(c["probability"] for c in a["classes"]) == pytest.approx(1, abs=1e-5)
        assert a["classes"][0]["probability"] >= a["classes"][1]["probability"]
    assert len({a["classes"][0]["probability"] for a in answers[0]}) > 10, "images are told apart"


def test_it_prints_a_line_for_each_image(folder: Path, subnet: Path) -> None:
    code, out, _ = trainonce("predict", subnet, folder / "cat" / "0.png", folder / "dog" / "9.jpg")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(rf"{re.escape(str(folder / 'cat' / '0.png'))}: (cat|dog) \d+\.\d%", lines[0])


def refused(result: tuple[int, str, str], pattern: str, code: int = 2) -> None:
    assert result[0] == code, result[2]
    assert "Traceback" not in result[2]
    lines = [line for line in result[2].splitlines() if line.startswith("trainonce:")]
    assert len(lines) == 1, result[2]
    assert re.search(pattern, lines[0]), lines[0]


class TestRefusals:
    def test_bad_images(self, subnet: Path, folder: Path, tmp_path: Path) -> None:
        good = folder / "cat" / "9.jpg"
        (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:300])
        (tmp_path / "text.png").write_text("not an image", encoding="utf-8")
        missing = tmp_path / "none.png"
        code, out, err = trainonce(
            "predict", subnet, tmp_path / "cut.jpg", good, missing, tmp_path / "text.png", tmp_path
        )
        assert code == 1
        assert re.fullmatch(rf"{re.escape(str(good))}: (cat|dog) \d+\.\d%\n", out), "the good one has its answer"
        cut, gone, text, folder_said, sentence = err.splitlines()
        assert "cut.jpg cannot be read as a JPEG, PNG" in cut
        assert "none.png does not exist" in gone
        assert "text.png cannot be read as a JPEG, PNG" in text
        assert f"{tmp_path} cannot be read as a JPEG, PNG" in folder_said
        assert sentence == "trainonce: 4 of 5 images could not be classified"
        code, out, _ = trainonce("predict", subnet, good, missing, "--json")
        first, second = json.loads(out)["predictions"]
        assert code == 1
        assert first["classes"][0]["class"] in ("cat", "dog")
        assert second == {"image": str(missing), "error": f"{missing} does not exist"}

    def test_logits_that_are_not_finite(self, subnet: Path, folder: Path, tmp_path: Path) -> None:
        network, description = read_subnet(subnet)
        with torch.no_grad():
            network.get_parameter("classifier.weight").mul_(3e38)
        write_subnet(tmp_path / "broken", network, description)
        image = folder / "cat" / "0.png"
        code, out, err = trainonce("predict", tmp_path / "broken", image, "--json")
        assert code == 1
        (answer,) = json.loads(out)["predictions"]
        assert answer["error"] == f"{image} gets logits that are not finite numbers: the network is broken"
        assert "trainonce: 1 of 1 images could not be classified" in err

    def test_bad_models(self, onnx_file: Path, folder: Path, tmp_path: Path) -> None:
        image = folder / "cat" / "0.png"
        (tmp_path / "cut.onnx").write_bytes(onnx_file.read_bytes()[:5000])
        (tmp_path / "empty.onnx").write_bytes(b"")
        (tmp_path / "model.txt").write_text("?", encoding="utf-8")
        refused(trainonce("predict", tmp_path / "cut.onnx", image), r"cut\.onnx is damaged or foreign")
        refused(trainonce("predict", tmp_path / "empty.onnx", image), r"empty\.onnx is damaged or foreign")
        refused(trainonce("predict", tmp_path / "model.txt", image), "is neither a subnet's directory nor an .onnx")
        refused(trainonce("predict", tmp_path / "gone.onnx", image), "does not exist")
        refused(trainonce("predict", tmp_path / "gone", image), "does not exist")
        refused(trainonce("predict", folder, image), r"is no subnet's directory \(there is no config\.json")

    def test_exporting(self, subnet: Path, onnx_file: Path, tmp_path: Path) -> None:
        refused(trainonce("export", subnet, "--to", "onnx,openvino"), "; each has a --to of its own")
        refused(trainonce("export", subnet, "--to", "tflite"), "the targets are onnx, onnx-fp16, onnx-int8, openvino")
        refused(trainonce("export", tmp_path, "--to", "onnx"), r"is no subnet's directory \(there is no config\.json")
        refused(trainonce("export", subnet, "--to", "onnx", "--run", tmp_path), "holds no run")
        refused(trainonce("export", subnet, "--to", "onnx-int8"), "int8 needs the run's images")
        refused(trainonce("export", subnet, "--to", "openvino", "--check"), "holds no export")
        content = onnx_file.read_bytes()
        try:
            onnx_file.write_bytes(content[:2000])
            refused(trainonce("export", subnet, "--to", "onnx", "--check"), "model.onnx is damaged", code=1)
        finally:
            onnx_file.write_bytes(content)
