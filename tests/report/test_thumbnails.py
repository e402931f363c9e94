"""Pictures of the images that are classified worst: those that are there, and no other file."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.command_line import trainonce

from trainonce import RunDirectory
from trainonce.report import build_page, read_groups, read_run
from trainonce.report.parts import Thumbnail
from trainonce.report.sections.networks import classes_section
from trainonce.report.thumbnails import SIDE, thumbnail

COLOURS = {"blue": (0, 0, 250), "red": (250, 0, 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour, whose classes have nothing to do with it, so that many are classified wrongly."""
    rng, place = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for name in COLOURS:
        (place / name).mkdir()
        for number in range(20):
            colour = list(COLOURS.values())[int(rng.integers(2))]
            Image.new("RGB", (90, 80), colour).save(place / name / f"{number}.png")
    return place


def test_the_page_shows_what_was_classified_wrongly(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ("--epochs", "1", "--image-size", "16", "--width", "0.25", "--batch-size", "8", "--device", "cpu")
    for words in (
        ("train", folder, "--recipe", "spos", *small, "--probes", "0", "--out", run),
        ("extract", run, "smallest", "--test", "--out", run / "subnets" / "one", "--device", "cpu"),
    ):
        done = trainonce(*words)
        assert done.code == 0, done.err
    taken = read_run(RunDirectory(run)).taken
    worst = classes_section(taken).tables[-1]
    assert list(worst.columns[:3]) == ["network", "picture", "image"]
    assert len(worst.rows) > 0
    for _, picture, file, *_ in worst.rows:
        assert isinstance(picture, Thumbnail)
        with Image.open(BytesIO(picture.jpeg)) as shown, Image.open(folder / str(file)) as there:
            assert shown.size == (SIDE, SIDE)
            near = np.asarray(shown)[5, 5].astype(int) - np.asarray(there)[5, 5]
            assert np.abs(near).max() < 10
    assert build_page(read_groups([run])).count('src="data:image/jpeg;base64,') == len(worst.rows)
    folder.rename(folder.with_name("elsewhere"))
    try:
        assert "picture" not in classes_section(read_run(RunDirectory(run)).taken).tables[-1].columns
    finally:
        folder.with_name("elsewhere").rename(folder)


@pytest.mark.parametrize("file", ["red/none.png", "../secret.png", "red/../../secret.png", "red", "text.png", "a\0b"])
def test_no_other_file_is_shown(folder: Path, file: str) -> None:
    Image.new("RGB", (9, 9)).save(folder.parent / "secret.png")
    (folder / "text.png").write_text("no picture")
    assert thumbnail(folder, "red/1.png", "red") is not None
    assert thumbnail(folder, file, "it") is None
