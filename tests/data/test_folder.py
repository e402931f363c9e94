"""Image folders: layouts, decoding against Pillow, and a sentence for everything that can be wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainonce.data import folder
from trainonce.data.decode import decode_image
from trainonce.data.folder import read_folder
from trainonce.data.splits import Published
from trainonce.errors import UserError


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Make a smooth picture (JPEG keeps it well) whose colours depend on the seed."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin((x * (c + 1) + y * (seed % 5 + 1)) / 23 + seed) for c in range(3)]
    return Image.fromarray(np.stack(waves, 2).astype(np.uint8)).convert(mode)


def make(root: Path, *names: str) -> Path:
    """Save a small picture under each name."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(20, 16, seed).save(path)
    return root


def read(path: Path, image_size: int = 8, grey: bool = False) -> Published:
    return read_folder(path, image_size=image_size, grey=grey)


class TestLayouts:
    def test_classes_at_the_top(self, tmp_path: Path) -> None:
        make(tmp_path, "dog/1.jpg", "cat/b.png", "cat/a.JPEG", "cat/deeper/c.jpg")
        (tmp_path / "cat" / "notes.txt").write_text("not an image")
        (tmp_path / "cat" / ".hidden.jpg").write_text("not an image")
        (tmp_path / ".git").mkdir()
        published = read(tmp_path)
        assert published.class_names == ("cat", "dog")
        assert published.train.labels.tolist() == [0, 0, 0, 1]
        assert published.train.images.shape == (4, 3, 8, 8)
        expected = decode_image(tmp_path / "dog" / "1.jpg", image_size=8, grey=False)
        assert (published.train.images[3].numpy() == expected).all()
        assert published.validate is None
        assert published.test is None

    @pytest.mark.parametrize("validate", ["val", "validate", "valid", "validation"])
    def test_splits_that_are_given(self, tmp_path: Path, validate: str) -> None:
        splits = ("train", validate, "test")
        make(tmp_path, *(f"{split}/{name}/1.png" for split in splits for name in ("a", "b")))
        published = read(tmp_path, grey=True)
        assert [name for name, _ in published.given()] == ["train", "validate", "test"]
        for _, split in published.given():
            assert split.labels.tolist() == [0, 1]
            assert split.images.shape == (2, 1, 8, 8)

    def test_a_class_may_be_called_train(self, tmp_path: Path) -> None:
        make(tmp_path, "train/1.png", "plane/1.png")
        assert read(tmp_path).class_names == ("plane", "train")

    def test_many_images_keep_their_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder, "CHUNK", 3)
        monkeypatch.setattr(folder, "PROGRESS_FROM", 5)
        make(tmp_path, *(f"{name}/{i:02}.png" for name in "ab" for i in range(10)))
        images = read(tmp_path).train.images
        for i in range(20):
            expected = decode_image(tmp_path / "ab"[i // 10] / f"{i % 10:02}.png", image_size=8, grey=False)
            assert (images[i].numpy() == expected).all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("names", "wrong"),
        [
            (["only/1.png"], "holds 1 class, 'only'; at least 2 are needed"),
            (["train/a/1.png", "train/b/1.png", "test/a/1.png"],
             "test has no class folder 'b', but .*train has one"),
            (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png", "val/c/1.png"],
             "train has no class folder 'c', but .*val has one"),
            (["test/a/1.png", "test/b/1.png"], "has 'test' but no 'train' folder"),
            (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "has both 'valid' and 'val'"),
        ],
    )  # fmt: skip
    def test_layout(self, tmp_path: Path, names: list[str], wrong: str) -> None:
        with pytest.raises(UserError, match=wrong):
            read(make(tmp_path, *names))

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path / "nowhere")
        with pytest.raises(UserError, match="holds no images"):
            read(tmp_path)
        (tmp_path / "a").mkdir()
        with pytest.raises(UserError, match="holds no images"):
            read(tmp_path)
        make(tmp_path, "b/1.png")
        with pytest.raises(UserError, match=r"class folder .*a holds no JPEG or PNG images"):
            read(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be read as a folder"):
            read(tmp_path / "file")

    @pytest.mark.parametrize("name", ["b/broken.jpg", "b/broken.png"])
    @pytest.mark.parametrize("keep", [0, 10, 100, 400])
    def test_broken_image_is_named(self, tmp_path: Path, name: str, keep: int) -> None:
        make(tmp_path, "a/1.png", name, "b/z.png")
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: min(keep, len(content) // 2)])
        with pytest.raises(UserError, match=f"{name} is not a whole JPEG or PNG image"):
            read(tmp_path)

    def test_another_format_under_the_name_of_jpeg(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.png", "b/1.png")
        picture(9, 9).save(tmp_path / "b" / "2.jpg", format="GIF")
        with pytest.raises(UserError, match=r"b/2\.jpg is not a whole JPEG or PNG image"):
            read(tmp_path)

    @settings(deadline=None, max_examples=200)
    @given(data=st.data(), suffix=st.sampled_from(["png", "jpg"]))
    def test_fuzz(self, good: Callable[[str], bytes], scratch: Path, data: st.DataObject, suffix: str) -> None:
        content = bytearray(good(suffix))
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        stop = data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))
        path = scratch / f"broken.{suffix}"
        path.write_bytes(content[:stop])
        try:
            image = decode_image(path, image_size=8, grey=False)
        except UserError:
            return
        assert image.shape == (3, 8, 8)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def good(scratch: Path) -> Callable[[str], bytes]:
    for suffix in ("png", "jpg"):
        picture(20, 16).save(scratch / f"good.{suffix}")
    return lambda suffix: (scratch / f"good.{suffix}").read_bytes()


class TestDecoding:
    @pytest.mark.parametrize(("width", "height"), [(100, 60), (60, 100), (16, 16), (5, 9), (1, 40)])
    def test_central_square_resized(self, tmp_path: Path, width: int, height: int) -> None:
        image = picture(width, height)
        image.save(tmp_path / "x.png")
        found = decode_image(tmp_path / "x.png", image_size=16, grey=False)
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        expected = np.asarray(square.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert (found == expected).all()

    def test_an_image_of_the_right_size_is_untouched(self, tmp_path: Path) -> None:
        image = picture(16, 16)
        image.save(tmp_path / "x.png")
        assert (
            decode_image(tmp_path / "x.png", image_size=16, grey=False) == np.asarray(image).transpose(2, 0, 1)
        ).all()

    def test_a_large_jpeg_is_close_to_the_exact_way(self, tmp_path: Path) -> None:
        picture(640, 480).save(tmp_path / "x.jpg", quality=95)
        with Image.open(tmp_path / "x.jpg") as image:
            exact = image.crop((80, 0, 560, 480)).resize((32, 32), Image.Resampling.BILINEAR)
        found = decode_image(tmp_path / "x.jpg", image_size=32, grey=False)
        assert np.abs(found.transpose(1, 2, 0).astype(int) - np.asarray(exact).astype(int)).max() <= 4

    @pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
    @pytest.mark.parametrize("grey", [False, True])
    def test_every_mode(self, tmp_path: Path, mode: str, grey: bool) -> None:
        path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
        picture(12, 12, mode=mode).save(path)
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGBA" if mode in ("P", "LA") else "RGB").convert("RGB"))
        found = decode_image(path, image_size=12, grey=grey)
        if grey:
            assert found.shape == (1, 12, 12)
            weighed = expected.astype(float) @ np.array([0.299, 0.587, 0.114])
            assert np.abs(found[0] - weighed).max() <= 1
        else:
            assert (found == expected.transpose(2, 0, 1)).all()

    def test_palette_with_transparency_warns_nobody(self, tmp_path: Path) -> None:
        picture(12, 12).quantize(16).save(tmp_path / "x.png", transparency=bytes(range(16)))
        assert decode_image(tmp_path / "x.png", image_size=12, grey=False).shape == (3, 12, 12)

    def test_sixteen_bit_grey_is_scaled_not_cut_off(self, tmp_path: Path) -> None:
        values = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
        Image.fromarray(values).save(tmp_path / "x.png")
        assert (decode_image(tmp_path / "x.png", image_size=8, grey=True)[0] == values >> 8).all()

    def test_a_photo_taken_sideways_is_turned_upright(self, tmp_path: Path) -> None:
        image = picture(16, 16)
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: turn a quarter clockwise
        image.save(tmp_path / "x.png", exif=exif)
        found = decode_image(tmp_path / "x.png", image_size=16, grey=False)
        assert (found == np.rot90(np.asarray(image), -1).transpose(2, 0, 1)).all()
