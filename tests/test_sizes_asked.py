"""What is asked for beyond all reason is refused at once, from the command line, from files and from Python."""

import time
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError
from tests.support.command_line import trainonce

from trainonce.data import listing
from trainonce.data.folder import read_folder
from trainonce.errors import UserError
from trainonce.lab.studies.built_in import STUDIES
from trainonce.lab.studies.study import StudyScoring, StudySetup, load_study
from trainonce.recipes import LONGEST_EPOCHS, RECIPES, Phase, load_recipe
from trainonce.search import SearchSettings
from trainonce.subnets.finetune import FinetuneSettings

AT_ONCE_S = 3.0  # of computing: a second or less, but for imports


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "digits", "--epochs", "1e300"), "must be over 0 and at most 1,000,000 epochs"),
        (("train", "digits", "--passes", "1e300"), "must be over 0 and at most 1,000,000 epochs"),
        (("train", "digits", "--epochs", "1e-323"), "must be over 0 and at most 1,000,000 epochs"),
        (("train", "digits", "--probes", "100000000"), "--probes"),
        (("study", "baseline", "digits", "--scale", "1e300"), "--scale"),
        (("study", "dose", "digits", "--scale", "1e300"), "--scale"),
        (("study", "baseline", "digits", "--scale", "nan"), "--scale"),
        (("study", "baseline", "digits", "--seeds", "100000000"), "--seeds"),
        (("study", "baseline", "digits", "--per-bucket", "1000000000"), "--per-bucket"),
        (("evaluate", "run", "--per-bucket", "1000000000"), "--per-bucket"),
        (("search", "run", "--scores", "1000000000"), "--scores"),
        (("measure", "run", "--probes", "1000000000"), "--probes"),
    ],
)
def test_the_command_line_refuses_at_once(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    began = time.process_time()
    result = trainonce(*arguments, *(("--out", tmp_path / "out") if arguments[0] in ("train", "study") else ()))
    assert time.process_time() - began < AT_ONCE_S
    assert (result.code, "Traceback" in result.err) == (2, False)
    assert says in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_whole_disk_is_no_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    trainonce("train", "/").refused("/")
    assert time.process_time() - began < AT_ONCE_S


def test_a_walk_that_finds_hardly_any_images_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_MOST_BESIDE", 100)
    for number in range(20):
        Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
    for name, images, others in (("cat", 10, 90), ("dog", 10, 0)):
        (tmp_path / "few" / name).mkdir(parents=True)
        for number in range(others):
            (tmp_path / "few" / name / f"{number}.txt").touch()
        for number in range(images):
            (tmp_path / "few" / name / f"{number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes())
    with pytest.warns(UserWarning, match=r"90 \.txt"):
        assert len(read_folder(tmp_path / "few", image_size=8, grey=True).train) == 20
    for number in range(310):
        (tmp_path / "few" / "cat" / f"more-{number}.txt").touch()
    with pytest.raises(UserError, match=r"few holds over 100 files and folders that are not images, and hardly any"):
        read_folder(tmp_path / "few", image_size=8, grey=True)


def test_recipes_have_a_longest_length(tmp_path: Path) -> None:
    assert RECIPES["rss"].scaled(LONGEST_EPOCHS / 590).epochs == pytest.approx(LONGEST_EPOCHS)
    with pytest.raises(UserError, match="at most 1,000,000 epochs"):
        RECIPES["rss"].scaled(LONGEST_EPOCHS / 589)
    with pytest.raises(ValidationError, match="less than or equal to 1000000"):
        Phase(name="endless", epochs=1e7)
    file = tmp_path / "endless.toml"
    file.write_text('name = "x"\nabout = "x"\n[[phases]]\nname = "p"\nepochs = 1e300\n')
    with pytest.raises(UserError, match=r"phases\.0\.epochs: Input should be less than or equal to 1000000"):
        load_recipe(str(file))


def test_settings_have_largest_values() -> None:
    for make in (
        lambda: FinetuneSettings.parse({"epochs": 10**9}, where="here"),
        lambda: SearchSettings.parse({"scores": 10**9}, where="here"),
        lambda: StudyScoring.parse({"per_bucket": 10**9}, where="here"),
    ):
        with pytest.raises(UserError, match=r"here: .* less than or equal to"):
            make()


def test_a_studys_own_file_is_bounded_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    setup = StudySetup(image_size=8, channels=1, classes=10, train_images=1000)
    file.write_text('passes = 1e300\n[[arms]]\nname = "a"\nrecipe = "rss"\n')
    with pytest.raises(UserError, match="at most 1,000,000 epochs"):
        load_study(file).build(setup, folder=tmp_path, where="mine.toml")
    file.write_text(f'seeds = {list(range(1001))}\n[[arms]]\nname = "a"\nrecipe = "rss"\n')
    with pytest.raises(UserError, match=r"seeds: .* at most 1000 items"):
        load_study(file)


def test_the_largest_scale_is_a_study_still() -> None:
    setup = StudySetup(image_size=8, channels=1, classes=10, train_images=1000, scale=1000.0)
    assert STUDIES["baseline"].study(setup).scale == 1000
