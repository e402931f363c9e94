"""Images by the native kernels against torch's operators: varied in one pass, and made smaller."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.native import needs_native
from tests.support.warm_python import run_python
from torch import Tensor
from torch.nn import functional as F

from trainonce.data import augment, normalise
from trainonce.nn import native
from trainonce.nn.native import images as images_native
from trainonce.recipes import Augmentation, Colour, Crop, CutMix, Erase, Flip

pytestmark = needs_native
KINDS: tuple[Augmentation, ...] = ((Flip(),), (Colour(),), (Flip(), Colour(brightness=0.4, saturation=0.6)), ())


@contextmanager
def by_torch() -> Iterator[None]:
    """Images are varied by torch's operators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "varies", lambda _images: False)
        yield


JOINED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and "march" in native.tuned()
"""Whether both join a product and a sum, so that they round alike."""


def check(found: Tensor, wanted: Tensor, *, rtol: float, atol: float, exact: bool = True) -> None:
    """The same numbers: to the last bit where both round alike, else nearly."""
    assert (found.shape, found.dtype) == (wanted.shape, torch.float32)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    assert not (JOINED and exact) or torch.equal(found, wanted)


def batch(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def varied(images: Tensor, augmentation: Augmentation) -> Tensor:
    channels = images.shape[1]
    mean, std = (0.1, 0.4, 0.5, 0.2)[:channels], (0.2, 0.3, 0.25, 0.1)[:channels]
    return augment(images, augmentation, mean=mean, std=std, generator=torch.Generator().manual_seed(3))


@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    low=st.sampled_from((0.08, 0.5, 1.0)),
    after=st.sampled_from(KINDS),
)
@example(channels=3, height=64, width=64, low=0.5, after=(Flip(), Colour(brightness=0.12, saturation=0.5)))
@example(channels=3, height=17, width=1, low=0.08, after=(Flip(),))
def test_images_are_varied_as_by_torch(channels: int, height: int, width: int, low: float, after: Augmentation) -> None:
    images, augmentation = batch(5, channels, height, width), (Crop(scale=(low, 1.0)), *after)
    found = varied(images, augmentation)
    with by_torch():
        wanted = varied(images, augmentation)
    check(found, wanted, rtol=1e-5, atol=1e-4)  # in parts of a standard deviation of 26 to 77


def test_a_crop_of_the_whole_image_is_the_image() -> None:
    images = batch(4, 3, 12, 12)
    whole = Crop(scale=(1.0, 1.0), aspect=(1.0, 1.0))
    found = augment(images, (whole,), mean=(0.0,) * 3, std=(1.0,) * 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, normalise(images, mean=(0.0,) * 3, std=(1.0,) * 3), rtol=0, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("augmentation", "at_once"),
    [
        ((Crop(),), True),
        ((Crop(), Flip()), True),
        ((Crop(), Colour()), True),
        ((Crop(), Flip(), Colour()), True),
        ((Flip(),), False),
        ((Crop(), Colour(), Flip()), False),
        ((Crop(), Flip(), CutMix()), True),
        ((Crop(), Crop()), False),
        ((Crop(), Erase()), False),
        ((), False),
    ],
)
def test_which_variations_are_made_in_one_pass(
    augmentation: Augmentation, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = batch(2, 3, 8, 8).float()
    monkeypatch.setattr(native, "vary", lambda *_given, **_options: found)
    assert (varied(batch(2, 3, 8, 8), augmentation) is found) == at_once


def test_images_that_lie_otherwise_are_the_same() -> None:
    images = batch(6, 16, 16, 3).permute(0, 3, 1, 2)
    augmentation = (Crop(), Flip(), Colour())
    assert torch.equal(varied(images, augmentation), varied(images.contiguous(), augmentation))


@given(st.integers(1, 4), st.integers(2, 40), st.data())
def test_resized_images_are_torchs(channels: int, old: int, data: st.DataObject) -> None:
    new = data.draw(st.integers(1, old + 5), label="new")
    x = torch.randn(3, channels, old, old, generator=torch.Generator().manual_seed(old))
    wanted = F.interpolate(x, (new, new), mode="bilinear", antialias=True)
    check(native.resize(x, new), wanted, rtol=1e-5, atol=1e-6, exact=2 * new >= old)


@pytest.mark.parametrize("channels", [1, 3])
def test_of_no_images_there_are_none(channels: int) -> None:
    assert varied(batch(0, channels, 8, 8), (Crop(), Flip())).shape == (0, channels, 8, 8)
    assert native.resize(torch.zeros(0, channels, 8, 8), 4).shape == (0, channels, 4, 4)


def test_another_default_type_changes_nothing() -> None:
    x, before = torch.randn(2, 3, 10, 10), torch.get_default_dtype()
    augmentation = (Crop(), Flip(), Colour())
    wanted, images = native.resize(x, 7), varied(batch(2, 3, 8, 8), augmentation)
    images_native._weights.cache_clear()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(native.resize(x, 7), wanted)
        assert torch.equal(varied(batch(2, 3, 8, 8), augmentation), images)
    finally:
        torch.set_default_dtype(before)


def test_images_of_their_size_stay_what_they_are() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert native.resize(x, 8) is x


def test_where_a_gradient_is_asked_for_it_is_torchs() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    torch.autograd.backward(native.resize(x, 4).sum())
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(), torch.tensor(2 * 3 * 16.0))


def test_threads_change_nothing() -> None:
    images, x = batch(9, 3, 64, 64), torch.randn(9, 3, 64, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = varied(images, (Crop(), Flip(), Colour())), native.resize(x, 32)
        torch.set_num_threads(4)
        shared = varied(images, (Crop(), Flip(), Colour())), native.resize(x, 32)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))


BEFORE_A_FORBIDDEN_PAGE = """
import ctypes, mmap, torch
from trainonce.nn import native
from trainonce.nn.native import images as images_native

PAGE = mmap.PAGESIZE
count = 2 * 16 * 16 * 3
whole = mmap.mmap(-1, (4 * count // PAGE + 2) * PAGE)
start = ctypes.addressof(ctypes.c_char.from_buffer(whole))
forbidden = len(whole) - PAGE
libc = ctypes.CDLL(None)
assert libc.mprotect(ctypes.c_void_p(start + forbidden), ctypes.c_size_t(PAGE), 0) == 0
x = torch.frombuffer(whole, dtype=torch.float32, count=count, offset=forbidden - 4 * count).view(2, 16, 16, 3)
x.copy_(torch.randn(2, 16, 16, 3))
found = native.resize(x.permute(0, 3, 1, 2), 8)
print("same" if torch.equal(found, native.resize(x.clone().permute(0, 3, 1, 2), 8)) else "different")
"""


def test_nothing_is_read_beyond_the_images() -> None:
    """Three numbers are read as four: the last ones lie where a page ends after which none may be read."""
    done = run_python(BEFORE_A_FORBIDDEN_PAGE)
    assert (done.returncode, done.stdout.strip()) == (0, "same"), done.stderr
