"""One picture to pixels: every mode of Pillow against numpy, every kind of file, and pictures that are too large."""

import colorsys
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from trainonce import limits
from trainonce.data import decode
from trainonce.data.decode import decode_image
from trainonce.data.picture import square_picture
from trainonce.errors import UserError

SIDE = 12
Array = npt.NDArray[np.float64]


def noise(*shape: int, most: int = 256) -> npt.NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, most, (SIDE, SIDE, *shape))


def over_white(colour: Array, alpha: Array) -> Array:
    return colour * (alpha / 255) + 255 * (1 - alpha / 255)


def three(grey: npt.NDArray[np.generic]) -> Array:
    return np.repeat(grey[..., None].astype(float), 3, axis=2)


def alphas() -> npt.NDArray[np.int64]:
    """Every kind of transparency: none, whole, and between."""
    alpha = noise()
    alpha[:4], alpha[4:8] = 0, 255
    return alpha


def as_bytes(array: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    return array.astype(np.uint8)


def coloured(mode: str) -> Image.Image:
    """Noise of three or four bytes a pixel, whatever they mean in a mode."""
    raw = as_bytes(noise(4 if mode in ("CMYK", "RGBA", "RGBX", "RGBa") else 3))
    return Image.frombytes(mode, (SIDE, SIDE), raw.tobytes())


def of_palette(mode: str) -> tuple[Image.Image, Array]:
    """An image of mode P or PA, and its colours."""
    colours = np.random.default_rng(5).integers(0, 256, (256, 3))
    indices = noise()
    image = Image.frombytes("P", (SIDE, SIDE), as_bytes(indices).tobytes())
    image.putpalette(as_bytes(colours).tobytes())
    if mode == "PA":
        image = image.convert("PA")
        image.putalpha(Image.fromarray(as_bytes(alphas())))
    return image, colours[indices].astype(float)


def sixteen(mode: str) -> tuple[Image.Image, Array]:
    values = noise(most=65536)
    kind = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    return Image.frombytes(mode, (SIDE, SIDE), values.astype(kind).tobytes()), three(values >> 8)


def every_mode() -> dict[str, tuple[Image.Image, Array]]:
    """For each mode an image and the colours that it should have, by the mode's definition."""
    grey, colour, alpha = noise(), noise(3), alphas()
    palette, palette_colours = of_palette("P")
    paletted, paletted_colours = of_palette("PA")
    made: dict[str, tuple[Image.Image, Array]] = {
        "1": (Image.fromarray(grey > 127), three(255 * (grey > 127))),
        "L": (Image.fromarray(as_bytes(grey)), three(grey)),
        "RGB": (Image.fromarray(as_bytes(colour)), colour.astype(float)),
        "RGBX": (coloured("RGBX"), noise(4)[..., :3].astype(float)),
        "LA": (
            Image.merge("LA", [Image.fromarray(as_bytes(grey)), Image.fromarray(as_bytes(alpha))]),
            over_white(three(grey), three(alpha)),
        ),
        "RGBA": (
            Image.fromarray(as_bytes(np.concatenate([colour, alpha[..., None]], axis=2)), mode=None),
            over_white(colour.astype(float), three(alpha)),
        ),
        "P": (palette, palette_colours),
        "PA": (paletted, over_white(paletted_colours, three(alpha))),
    }
    cmyk = noise(4).astype(float)
    made["CMYK"] = coloured("CMYK"), (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255
    y, cb, cr = np.moveaxis(noise(3).astype(float), 2, 0)  # JPEG's
    red, blue = y + 1.402 * (cr - 128), y + 1.772 * (cb - 128)
    green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    made["YCbCr"] = coloured("YCbCr"), np.stack([red, green, blue], axis=2).clip(0, 255)
    hsv = [colorsys.hsv_to_rgb(*pixel) for pixel in (noise(3) / 255).reshape(-1, 3)]
    made["HSV"] = coloured("HSV"), 255 * np.array(hsv).reshape(SIDE, SIDE, 3)
    srgb, lab_profile = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    muted = 96 + colour // 4  # eight bits of LAB tell vivid colours apart badly
    lab = ImageCms.applyTransform(
        Image.fromarray(as_bytes(muted)), ImageCms.buildTransform(srgb, lab_profile, "RGB", "LAB")
    )
    assert lab is not None
    made["LAB"] = lab, muted.astype(float)
    return made | {mode: sixteen(mode) for mode in ("I", "I;16", "I;16L", "I;16B")}


MODES = every_mode()
CLOSE = {"1": 0, "L": 0, "RGB": 0, "RGBX": 0, "P": 0, "I": 0, "I;16": 0, "I;16L": 0, "I;16B": 0, "LAB": 6, "HSV": 4}
"""How many of 255 the colours may be off: nothing where the mode says them, else what rounding may do."""


STORES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "tiff": ("1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "I;16B"),
    "bmp": ("1", "L", "P", "RGB"),
}
"""Modes that kinds of files hold without loss."""
STORED = [(kind, mode) for kind, modes in STORES.items() for mode in modes]


class TestModes:
    @pytest.mark.parametrize("mode", MODES)
    def test_colours_are_what_the_mode_says(self, mode: str) -> None:
        image, expected = MODES[mode]
        assert image.mode == mode
        found = np.asarray(square_picture(image.copy(), SIDE, "RGB"))
        assert np.abs(found - expected).max() <= CLOSE.get(mode, 2)
        grey = np.asarray(square_picture(image.copy(), SIDE, "L"))
        assert np.abs(grey - found @ np.array([0.299, 0.587, 0.114])).max() <= 1

    @pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
    def test_what_is_whole_is_untouched_and_what_is_not_there_is_white(self, mode: str) -> None:
        found = np.asarray(square_picture(MODES[mode][0].copy(), SIDE, "RGB"))
        assert (found[:4] == 255).all()
        assert (found[4:8] == MODES[mode][1][4:8]).all()

    @pytest.mark.parametrize(("kind", "mode"), STORED)
    def test_files_that_lose_nothing(self, tmp_path: Path, mode: str, kind: str) -> None:
        MODES[mode][0].save(tmp_path / f"x.{kind}")
        found = decode_image(tmp_path / f"x.{kind}", image_size=SIDE, grey=False).transpose(1, 2, 0)
        assert np.abs(found - MODES[mode][1]).max() <= CLOSE.get(mode, 2)

    def test_webp(self, tmp_path: Path) -> None:
        MODES["RGBA"][0].save(tmp_path / "x.webp", lossless=True)
        found = decode_image(tmp_path / "x.webp", image_size=SIDE, grey=False).transpose(1, 2, 0)
        assert np.abs(found - MODES["RGBA"][1]).max() <= 2

    @pytest.mark.parametrize(("mode", "transparent"), [("L", 7), ("RGB", (7, 8, 9)), ("P", 7), ("1", 1), ("I;16", 700)])
    def test_one_transparent_colour(self, tmp_path: Path, mode: str, transparent: int | tuple[int, ...]) -> None:
        image = Image.new("L" if mode == "P" else mode, (SIDE, SIDE))
        image.putpixel((0, 0), transparent)
        if mode == "P":
            image = image.convert("P")
        image.save(tmp_path / "x.png", transparency=transparent)
        found = decode_image(tmp_path / "x.png", image_size=SIDE, grey=False)
        assert found[:, 0, 0].tolist() == [255, 255, 255]
        assert not found[:, 1:].any()

    def test_numbers_of_no_known_range_are_refused(self, tmp_path: Path) -> None:
        Image.new("F", (SIDE, SIDE), 0.5).save(tmp_path / "float.tiff")
        with pytest.raises(UserError, match=r"float\.tiff .* floating-point numbers"):
            decode_image(tmp_path / "float.tiff", image_size=SIDE, grey=False)
        for number in (-1, 65536):
            Image.new("I", (SIDE, SIDE), number).save(tmp_path / "whole.tiff")
            with pytest.raises(UserError, match=r"whole\.tiff .* numbers beyond 16 bits"):
                decode_image(tmp_path / "whole.tiff", image_size=SIDE, grey=True)

    @pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
    def test_sideways_in_16_bits_and_in_other_files(self, tmp_path: Path, kind: str) -> None:
        mode = "RGB" if kind == "webp" else "I;16"
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: turn a quarter clockwise
        MODES[mode][0].save(tmp_path / f"x.{kind}", exif=exif, lossless=True)
        found = decode_image(tmp_path / f"x.{kind}", image_size=SIDE, grey=False)
        assert (found == np.rot90(MODES[mode][1], -1).transpose(2, 0, 1)).all()

    def test_of_several_pictures_the_first(self, tmp_path: Path) -> None:
        first, second = MODES["RGB"][0], Image.new("RGB", (SIDE, SIDE))
        for name in ("x.tiff", "x.png", "x.webp"):
            first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
            found = decode_image(tmp_path / name, image_size=SIDE, grey=False)
            assert (found.transpose(1, 2, 0) == MODES["RGB"][1]).all()


def bomb(path: Path, width: int, height: int) -> Path:
    """A small PNG of a huge black picture."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + width // 8)) for _ in range(height)) + rows.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


class TestSize:
    def test_a_bomb_is_refused_by_name_before_it_is_inflated(self, tmp_path: Path) -> None:
        path = bomb(tmp_path / "bomb.png", 40_000, 40_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UserError, match=r"bomb\.png: its 40000 x 40000 pixels are more than the 89,478,485 that"):
            decode_image(path, image_size=64, grey=True)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"

    def test_the_limit_suits_the_image_size(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("RGB", (200, 200)).save(tmp_path / "x.png")
        monkeypatch.setattr(decode, "MOST_PIXELS", 30_000)
        monkeypatch.setattr(decode, "LARGE_PIXELS", 20_000)
        with pytest.raises(UserError, match="more than the 30,000 that images of 80 x 80 are made of"):
            decode_image(tmp_path / "x.png", image_size=80, grey=True)
        assert decode_image(tmp_path / "x.png", image_size=100, grey=True).shape == (1, 100, 100)

    def test_a_huge_jpeg_that_is_decoded_smaller_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("RGB", (1600, 1600), "red").save(tmp_path / "x.jpg")
        monkeypatch.setattr(decode, "MOST_PIXELS", 50_000)
        monkeypatch.setattr(decode, "LARGE_PIXELS", 50_000)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
        assert decode_image(tmp_path / "x.jpg", image_size=16, grey=False)[0].min() > 250
        assert Image.MAX_IMAGE_PIXELS == 50_000

    def test_a_large_picture_is_compared_with_the_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("RGB", (200, 200)).save(tmp_path / "x.png")
        monkeypatch.setattr(decode, "LARGE_PIXELS", 30_000)
        assert decode_image(tmp_path / "x.png", image_size=8, grey=False).shape == (3, 8, 8)
        monkeypatch.setattr(limits, "memory_bytes", lambda: 100_000)
        with pytest.raises(UserError, match=r"x\.png: its 200 x 200 pixels would take 480,000 bytes of memory"):
            decode_image(tmp_path / "x.png", image_size=8, grey=False)


def test_what_is_missing_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.png does not exist"):
        decode_image(tmp_path / "nowhere.png", image_size=8, grey=False)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", format="GIF")
    with pytest.raises(UserError, match=r"x\.png cannot be read as a JPEG, PNG, WebP, BMP or TIFF image: it is of"):
        decode_image(str(tmp_path / "x.png"), image_size=8, grey=False)
