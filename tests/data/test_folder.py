"""Image folders: layouts, decoding against Pillow, and a sentence for everything that can be wrong."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainonce.data import Split, folder, load_dataset
from trainonce.data.decode import decode_image
from trainonce.data.folder import read_folder
from trainonce.data.splits import Published
from trainonce.data.stream import ImageFiles
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
        for litter in ("._1.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (tmp_path / "cat" / litter).write_text("not an image")
        (tmp_path / "__MACOSX").mkdir()
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

    def test_every_kind_of_file(self, tmp_path: Path) -> None:
        names = [f"b/{i}.{kind}" for i, kind in enumerate(["jpg", "PNG", "webp", "bmp", "tif", "tiff", "TIFF", "jpeg"])]
        published = read(make(tmp_path, "a/1.png", *names))
        assert published.train.labels.tolist() == [0] + [1] * 8
        for row, name in enumerate(names, start=1):
            expected = decode_image(tmp_path / name, image_size=8, grey=False)
            assert (published.train.images[row].numpy() == expected).all()

    def test_files_are_in_the_order_of_their_paths_part_by_part(self, tmp_path: Path) -> None:
        names = ["a/b/x.png", "a/b!.png", "a/b.png", "a/B.png", "a/b c.png", "a/10.png", "a/9.png", "a/c/a.png"]
        make(tmp_path, "0/1.png", *names)
        published = read_folder(tmp_path, image_size=8, grey=False, stream=True)
        in_order = [Path(path).relative_to(tmp_path) for path in paths_of(published.train)]
        assert in_order == [Path("0/1.png"), *sorted(map(Path, names))]


def paths_of(split: Split) -> list[str]:
    assert isinstance(split.pixels, ImageFiles)
    return split.pixels.paths(torch.arange(len(split)))


class TestLeftOut:
    def test_everything_that_is_not_read_is_counted(self, tmp_path: Path) -> None:
        make(tmp_path, "dog/1.jpg", "cat/1.png", "cat/2.gif", "cat/deep/3.GIF", "away/1.png", "loose.png")
        (tmp_path / "cat" / "4.heic").write_bytes(b"not read")
        (tmp_path / "cat" / "README").write_text("not an image")
        (tmp_path / "cat" / ".hidden.jpg").write_text("not an image")
        (tmp_path / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
        (tmp_path / "cat" / "round.jpg").symlink_to("round.jpg")
        (tmp_path / "cat" / "kept.jpg").symlink_to("../dog/1.jpg")
        (tmp_path / "cat" / "more").symlink_to("../away")
        (tmp_path / ".git").mkdir()
        (tmp_path / "lost").symlink_to("nowhere")
        os.mkfifo(tmp_path / "cat" / "pipe.jpg")
        with pytest.warns(UserWarning, match="not read, as only JPEG, PNG, WebP, BMP or TIFF files") as caught:
            published = read(tmp_path)
        assert published.train.labels.tolist() == [0, 1, 1, 2]
        [text] = [str(one.message) for one in caught]
        parts = [part.partition(" ") for part in text.split(": ")[2].split(", ")]
        counts = {kind: int(count) for count, _, kind in parts}
        assert counts == {
            ".gif": 2,
            ".heic": 1,
            "file without an ending": 1,
            "hidden file": 1,
            "hidden folder": 1,
            "dangling links": 3,
            "link to a folder": 1,
            "file outside class folders": 1,
            "neither file nor folder": 1,
        }

    def test_beside_splits(self, tmp_path: Path) -> None:
        make(tmp_path, "train/a/1.png", "train/b/1.png", "extra/x/1.png", "1.png")
        with pytest.warns(UserWarning, match=r"1 folder beside the splits \(extra\)") as caught:
            assert len(read(tmp_path).train) == 2
        assert "1 file outside class folders" in str(caught[0].message)

    def test_a_class_of_nothing_else_says_what_it_holds(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.png", "b/1.gif", "b/2.gif")
        with pytest.raises(UserError, match=r"class folder .*b holds no JPEG.* images, only 2 \.gif"):
            read(tmp_path)

    def test_a_folder_that_may_not_be_read_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make(tmp_path, "a/1.png", "b/deep/1.png", "b/2.png")
        real = os.scandir

        def scandir(path: Path) -> object:
            if Path(path).name == "deep":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(UserError, match=r"b/deep cannot be read as a folder: Permission denied"):
            read(tmp_path)


class TestBroken:
    @pytest.fixture
    def damaged(self, tmp_path: Path) -> Path:
        """Of 6 images 3 are broken, one of them in another split."""
        make(tmp_path, *(f"train/{name}/{i}.png" for name in "ab" for i in range(3)))
        make(tmp_path, *(f"test/{name}/{i}.webp" for name in "ab" for i in range(2)))
        for name in ("train/a/0.png", "train/b/2.png", "test/b/1.webp"):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
        return tmp_path

    BROKEN = ("test/b/1.webp", "train/a/0.png", "train/b/2.png")

    def test_all_are_named_at_once(self, damaged: Path) -> None:
        with pytest.raises(UserError, match=r"3 images are broken; .* --skip-broken: ") as caught:
            read(damaged)
        assert all(str(damaged / name) in str(caught.value) for name in self.BROKEN)

    def test_what_is_broken_alike_is_told_once(self, tmp_path: Path) -> None:
        """Place-holders of Git LFS, of which a clone without it has one for each image, and eight cut off."""
        names = [f"{name}/{i}.jpg" for name in "ab" for i in range(20)]
        make(tmp_path, *names)
        for number, name in enumerate(names[:8], start=1):
            picture(64, 64).save(tmp_path / name)
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[: -2 - 7 * number])
        for name in names[8:38]:
            (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 12\n")
        with pytest.raises(UserError) as caught:
            read(tmp_path)
        begins, lfs, cut = str(caught.value).split(f"{tmp_path}/", 1)[0], *str(caught.value).split("; ")[-2:]
        assert begins.startswith("38 images are broken; ")
        assert lfs.count(".jpg") == folder.MOST_NAMED
        assert f"and {30 - folder.MOST_NAMED} more cannot be read as a JPEG" in lfs
        assert lfs.endswith("place-holder that Git LFS leaves until `git lfs pull` fetches the file itself")
        assert cut.startswith(f"{tmp_path / names[0]}, {tmp_path / names[1]}, ")
        assert cut.endswith("3 more cannot be read as a JPEG, PNG, WebP, BMP or TIFF image: image file is truncated")

    def test_of_many_kinds_the_commonest_are_told(self, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder, "MOST_NAMED", 1)
        (damaged / "test/b/1.webp").write_bytes(b"")
        with pytest.raises(UserError, match=r"train/a/0\.png, and 1 more cannot[^;]*; and 1 more$"):
            read(damaged)

    @pytest.mark.parametrize("stream", [False, True])
    def test_skipped_and_said_so(self, damaged: Path, stream: bool) -> None:
        with pytest.warns(UserWarning, match=r"left out as broken \(3\): test/b/1\.webp, train/a/0\.png, train/b/2"):
            published = read_folder(damaged, image_size=8, grey=False, stream=stream, workers=0, skip_broken=True)
        assert published.skipped == self.BROKEN
        assert published.test is not None
        assert published.train.labels.tolist() == [0, 0, 1, 1]
        assert published.test.labels.tolist() == [0, 0, 1]
        rows = torch.arange(4)
        names = ["a/1", "a/2", "b/0", "b/1"]
        for image, name in zip(published.train.batch(rows).images_BCHW, names, strict=True):
            expected = decode_image(damaged / f"train/{name}.png", image_size=8, grey=False)
            assert (image.numpy() == expected).all()

    @pytest.mark.parametrize("stream", [False, True])
    def test_what_is_recorded_as_skipped_is_left_out_again(self, damaged: Path, stream: bool) -> None:
        for name in self.BROKEN:  # repaired meanwhile: the run's images stay the same
            picture(20, 16).save(damaged / name)
        with pytest.warns(UserWarning, match=r"left out as broken \(3\)"):
            again = read_folder(damaged, image_size=8, grey=False, stream=stream, workers=0, skipped=self.BROKEN)
        assert again.skipped == self.BROKEN
        assert again.train.labels.tolist() == [0, 0, 1, 1]

    def test_a_new_break_is_an_error_still(self, damaged: Path) -> None:
        with pytest.raises(UserError, match=r"^[^;]*test/b/1\.webp cannot be read"):
            read_folder(damaged, image_size=8, grey=False, skipped=self.BROKEN[1:])

    def test_a_class_of_which_nothing_is_left(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.png", "b/1.png")
        (tmp_path / "b" / "1.png").write_bytes(b"")
        with pytest.raises(UserError, match=r"train, without the files that are skipped, has no image of class 'b'"):
            read_folder(tmp_path, image_size=8, grey=False, skip_broken=True)

    def test_only_for_folders(self) -> None:
        with pytest.raises(UserError, match="only files of a folder can be skipped, and 'digits' is not a folder"):
            load_dataset("digits", skip_broken=True)


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
        with pytest.raises(
            UserError,
            match=r"folder .*a holds no JPEG, .* or TIFF images: put images there, or remove such folders$",
        ):
            read(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be read as a folder"):
            read(tmp_path / "file")

    @pytest.mark.parametrize("name", [f"b/broken.{kind}" for kind in ("jpg", "png", "webp", "bmp", "tif")])
    @pytest.mark.parametrize("keep", [0, 10, 100, 400])
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_broken_image_is_named(self, tmp_path: Path, name: str, keep: int) -> None:
        make(tmp_path, "a/1.png", name, "b/z.png")
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: min(keep, len(content) // 2)])
        with pytest.raises(
            UserError, match=f"{name} cannot be read as a JPEG, PNG, WebP, BMP or TIFF image: .*--skip-broken"
        ):
            read(tmp_path)

    def test_another_format_under_the_name_of_jpeg(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.png", "b/1.png")
        picture(9, 9).save(tmp_path / "b" / "2.jpg", format="GIF")
        with pytest.raises(UserError, match=r"b/2\.jpg cannot be read as a JPEG.*: it is of another kind"):
            read(tmp_path)

    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    @settings(deadline=None, max_examples=200)
    @given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "webp", "bmp", "tiff"]))
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
    for suffix in ("png", "jpg", "webp", "bmp", "tiff"):
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

    def test_palette_with_transparency_warns_nobody(self, tmp_path: Path) -> None:
        picture(12, 12).quantize(16).save(tmp_path / "x.png", transparency=bytes(range(16)))
        assert decode_image(tmp_path / "x.png", image_size=12, grey=False).shape == (3, 12, 12)

    def test_a_photo_taken_sideways_is_turned_upright(self, tmp_path: Path) -> None:
        image = picture(16, 16)
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: turn a quarter clockwise
        image.save(tmp_path / "x.png", exif=exif)
        found = decode_image(tmp_path / "x.png", image_size=16, grey=False)
        assert (found == np.rot90(np.asarray(image), -1).transpose(2, 0, 1)).all()
