"""The model card: the Hub's own parser reads it, and its code does what it says."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.data.test_decode import MODES, STORED
from tests.support.warm_python import run_python

from trainonce.data import DataSet, DataSource, load_dataset
from trainonce.data.decode import decode_image
from trainonce.errors import UserError
from trainonce.export.predict import open_classifier
from trainonce.models import MobileNetV3
from trainonce.recipes import RECIPES
from trainonce.run.directory import RunDirectory
from trainonce.subnets import describe_subnet, write_subnet
from trainonce.subnets.card import model_card
from trainonce.subnets.description import Preprocessing, SubnetDescription
from trainonce.subnets.taken import describe_taken
from trainonce.training.loop import train_supernet

huggingface_hub = pytest.importorskip("huggingface_hub")

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]
SCORE = {"top1": 91.25, "loss": 0.31, "images": 400}


@pytest.fixture(scope="module")
def description(make_net: MakeNet, make_data: MakeData) -> SubnetDescription:
    net = make_net()
    return describe_subnet(net, net.space.smallest(), make_data()) | {
        "scores": {"validate": {"top1": 92.5, "loss": 0.25, "images": 80}},
        "recalibrated": {"calibration_images": 20},
        "trained": {"data": "cifar10", "published": True, "recipe": "rss", "epochs": 3.0, "seed": 5},
    }


def parsed(description: SubnetDescription) -> Any:
    return huggingface_hub.ModelCard(model_card(description))


class TestFrontMatter:
    def test_what_the_hub_reads(self, description: SubnetDescription) -> None:
        data = parsed(description).data
        assert data.library_name == "trainonce"
        assert data.pipeline_tag == "image-classification"
        assert data.datasets == ["uoft-cs/cifar10"]
        assert data.metrics == ["accuracy"]
        assert {"once-for-all", "image-classification"} <= set(data.tags)
        assert data.license is None, "left to the person"
        assert data.eval_results is None, "validate guided choices: no result to publish"

    def test_a_test_score_is_a_result(self, description: SubnetDescription) -> None:
        data = parsed(description | {"scores": {"test": SCORE}, "license": "apache-2.0"}).data
        assert data.license == "apache-2.0"
        [result] = data.eval_results
        assert (result.metric_type, result.metric_value) == ("accuracy", 0.9125)
        assert (result.dataset_name, result.dataset_type, result.dataset_split) == (
            "cifar10",
            "uoft-cs/cifar10",
            "test",
        )
        assert result.task_type == "image-classification"

    def test_without_scores_and_training(self, make_net: MakeNet, make_data: MakeData) -> None:
        net = make_net()
        card = parsed(describe_subnet(net, net.space.smallest(), make_data()))
        assert card.data.library_name == "trainonce"
        assert "## Scores" not in card.text
        assert "## How it was trained" not in card.text

    @given(licence=st.text(min_size=1))
    def test_any_text_survives(self, description: SubnetDescription, licence: str) -> None:
        """PyYAML, which the Hub's parser uses, gets it back unchanged."""
        assert parsed(description | {"license": licence}).data.license == licence

    @pytest.mark.parametrize("kind", ["folder", "npz", "older"])
    def test_a_name_alone_is_no_public_data_set(
        self, description: SubnetDescription, make_data: MakeData, make_net: MakeNet, tmp_path: Path, kind: str
    ) -> None:
        """Images of one's own in a folder or file called cifar10, and subnets that do not say where theirs are from."""
        trained = {"data": "cifar10"}
        if kind != "older":
            given = tmp_path / ("cifar10" if kind == "folder" else "cifar10.npz")
            colours(given)
            data = load_dataset(given, image_size=8)
            assert data.name == "cifar10"
            trained = taken(make_net, data, tmp_path / "run").to_json()["trained"]
        found = parsed(description | {"trained": trained, "scores": {"test": SCORE}})
        assert found.data.datasets is None
        assert found.data.eval_results is None
        assert "cifar10" not in str(found.data)
        assert "| test | 91.25% |" in found.text


def taken(make_net: MakeNet, data: DataSet, path: Path) -> SubnetDescription:
    """What is recorded of a subnet that is taken out of a short run."""
    run, net = RunDirectory(path), make_net(num_classes=data.num_classes, in_channels=data.channels)
    train_supernet(net, RECIPES["quick"].scaled(0.001), data, run, seed=0)
    return describe_taken(net, net.space.smallest(), data, run, run.load_supernet()[1], calibration=None, scores={})


@pytest.mark.parametrize(("fold", "published"), [(None, True), ((1, 5), False)])
def test_a_fold_is_not_as_it_was_published(
    make_net: MakeNet, tmp_path: Path, fold: tuple[int, int] | None, published: bool
) -> None:
    found = taken(make_net, load_dataset("digits", fold=fold), tmp_path / "run").trained
    assert found is not None
    assert (found.data, found.published) == ("digits", published)


def colours(path: Path) -> None:
    """Twenty pictures of each of two classes, in a folder or an npz file."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    if path.suffix:
        np.savez(path, train_images=pixels, train_labels=np.arange(40) % 2)
    for number, image in enumerate(pixels if not path.suffix else ()):
        (path / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / "ab"[number % 2] / f"{number}.png")


class TestText:
    def test_says_what_is_known(self, description: SubnetDescription) -> None:
        text = parsed(description | {"scores": {"validate": SCORE}}).text
        assert f"| MACs | {description.macs:,} |" in text
        assert f"| parameters | {description.params:,} |" in text
        assert "0 a, 1 b, 2 c." in text
        assert "| validate | 91.25% | 88.1 to 93.6 | 0.3100 | 400 |" in text
        assert "strategy of the supernet: rss" in text
        assert "batch norms: recalibrated" in text

    def test_class_names_mean_nothing_but_themselves(self, description: SubnetDescription) -> None:
        text = parsed(description | {"classes": ["<b>x</b>", "[y](http://z)", "one\ntwo"]}).text
        assert "\\<b\\>x\\</b\\>" in text
        assert "\\[y\\](http://z)" in text
        assert "one two" in text

    def test_many_classes_are_not_all_listed(self, description: SubnetDescription) -> None:
        text = parsed(description | {"classes": [f"class{number}" for number in range(150)]}).text
        assert "99 class99, and 50 more in config.json." in text
        assert "class100" not in text


@pytest.mark.parametrize(("channels", "sized"), [(1, True), (3, False)])
def test_its_code_does_what_predict_does(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, channels: int, sized: bool
) -> None:
    """The card's own lines, in a process without trainonce: a photo on its side, larger than what the network takes."""
    net = make_net(in_channels=channels, resolutions=(6, 8)).eval()
    data = make_data(channels=channels)
    arch, path = net.space.smallest(), tmp_path / "subnet"
    if sized:
        data = replace(data, source=DataSource(interpolation="bicubic"))
    description = describe_subnet(net, arch, data)
    assert (description.preprocessing.resolution, description.preprocessing.image_size) == (6, 8)
    if not sized:  # as older subnets are
        given = description.preprocessing.to_json()
        del given["image_size"]
        description |= {"preprocessing": given}
    write_subnet(path, net.extract(arch), description)
    pictures = picture_files(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(), re.DOTALL))
    code = code.replace("path/of/this/directory", str(path))
    assert code.count('"picture.jpg"') == 1
    code = code.replace('"picture.jpg"', "name")
    each = f"for name in {[str(file) for file in pictures]!r}:\n    exec(code)\n    print(logits.tolist())"
    script = f"code = {code!r}\n{each}\nassert 'trainonce' not in sys.modules\n"
    done = run_python(script, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    classifier = open_classifier(path)
    for picture, line in zip(pictures, done.stdout.splitlines(), strict=True):
        with torch.no_grad():
            expected = classifier.run(classifier.prepared(picture))
        torch.testing.assert_close(torch.tensor(json.loads(line)), expected, msg=picture.name)


def picture_files(folder: Path) -> list[Path]:
    """A large photo on its side, and a picture of every mode in every kind of file that holds it."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    pixels = np.random.default_rng(0).integers(0, 256, (41, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg", exif=exif)
    files = [folder / "photo.jpg"]
    for kind, mode in [*STORED, ("webp", "RGBA"), ("jpg", "CMYK")]:
        files.append(folder / f"{mode.replace(';', '-')}.{kind}")
        MODES[mode][0].save(files[-1])
    return files


@pytest.mark.parametrize("mode", ["F", "I"])
def test_the_cards_lines_refuse_what_predict_refuses(tmp_path: Path, description: SubnetDescription, mode: str) -> None:
    Image.new(mode, (8, 8), 70000).save(tmp_path / "x.tiff")
    lines = re.search(r"import numpy as np.*?(?=\nmean)", model_card(description), re.DOTALL)
    assert lines is not None
    code = lines[0].replace("picture.jpg", str(tmp_path / "x.tiff"))
    with pytest.raises(ValueError, match="what is white among them is not known"):
        exec(code, {})
    with pytest.raises(UserError, match="what is white among them is not known"):
        decode_image(tmp_path / "x.tiff", image_size=8, grey=True)


def test_what_is_wrong_with_several_keys_together_is_said() -> None:
    whole = {"resolution": 8, "channels": 3, "mean": [0.5], "std": [0.3]}
    with pytest.raises(UserError, match="here: mean and std need 3 numbers each"):
        Preprocessing.read(whole, where="here")
