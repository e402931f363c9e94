"""Images over the native kernels: varied in one pass, and resized. The numbers are those of torch's operators."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from trainonce.nn.native.calls import kernels, threads_for, usable
from trainonce.nn.native.library import Images, SideWeights, load_kernels
from trainonce.nn.plain import resize as plain_resize


def varies(images_BCHW: Tensor) -> bool:
    """Whether `vary` can take these images: uint8 on a CPU, where the kernels could be built."""
    return images_BCHW.device.type == "cpu" and images_BCHW.dtype == torch.uint8 and load_kernels() is not None


def vary(
    images_BCHW: Tensor,
    columns_BW: Tensor,
    rows_BH: Tensor,
    *,
    brightness_B: Tensor | None,
    saturation_B: Tensor | None,
    grey: Sequence[float],
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Images, uint8 [B, C, H, W], sampled, coloured and normalised: float32 [B, C, H, W], channels_last.

    They are sampled at `columns` [B, W] and `rows` [B, H], float32 from -1 to 1 as grid_sample has them, bilinearly.
    `brightness` and `saturation` [B] are float32 factors; the latter needs as many channels as there are shares of
    `grey`. `mean` and `std` are of pixels in 0 to 1, one number a channel.
    """
    images, channels, height, width = images_BCHW.shape
    numbers = (columns_BW, rows_BH, *(factor for factor in (brightness_B, saturation_B) if factor is not None))
    assert all(tensor.dtype == torch.float32 for tensor in numbers), [tensor.dtype for tensor in numbers]
    images_BCHW, columns_BW, rows_BH = (tensor.contiguous() for tensor in (images_BCHW, columns_BW, rows_BH))
    out_MC = torch.empty(images * height * width, channels, dtype=torch.float32, device="cpu")
    shares, off, over = (
        (ctypes.c_float * channels)(*each)
        for each in (grey[:channels], (255 * one for one in mean), (255 * one for one in std))
    )
    kernels().vary_images(
        Images(
            pixels=images_BCHW.data_ptr(),
            images=images,
            channels=channels,
            height=height,
            width=width,
            threads=threads_for(out_MC.numel(), images),
            columns=columns_BW.data_ptr(),
            rows=rows_BH.data_ptr(),
            brightness=None if brightness_B is None else brightness_B.data_ptr(),
            saturation=None if saturation_B is None else saturation_B.data_ptr(),
            grey=ctypes.addressof(shares),
            mean=ctypes.addressof(off),
            std=ctypes.addressof(over),
            out=out_MC.data_ptr(),
        )
    )
    return _as_images(out_MC, images, height, width)


def resize(x_BCHW: Tensor, resolution: int) -> Tensor:
    """Images [B, C, H, W] at `resolution` pixels a side, as `trainonce.nn.plain.resize` makes them.

    That does it where kernels are not usable, where images are not square, and where a gradient is asked for.
    """
    images, channels, height, width = x_BCHW.shape
    if height == width == resolution:
        return x_BCHW
    if height != width or x_BCHW.requires_grad or not usable(x_BCHW):
        return plain_resize(x_BCHW, resolution)
    x_BHWC = x_BCHW.permute(0, 2, 3, 1).contiguous()
    out_MC = x_BCHW.new_empty(images * resolution * resolution, channels)
    weights = _weights(height, resolution)
    kernels().resize_images(
        *(weights.side, x_BHWC.data_ptr(), images, channels, out_MC.data_ptr(), threads_for(x_BHWC.numel(), images))
    )
    return _as_images(out_MC, images, resolution, resolution)


def _as_images(rows_MC: Tensor, images: int, height: int, width: int) -> Tensor:
    """Rows as images; those of one channel with the strides that torch's operators give, by which it chooses others."""
    if rows_MC.shape[1] == 1:
        return rows_MC.view(images, 1, height, width)
    return rows_MC.view(images, height, width, rows_MC.shape[1]).permute(0, 3, 1, 2)


class _Weights:
    """How much each old pixel of a side counts for each new one: `SideWeights`, and the tensors it points into."""

    def __init__(self, old: int, new: int) -> None:
        whole = torch.eye(old, dtype=torch.float32, device="cpu")[None, None]
        shares_NO = F.interpolate(whole, (new, old), mode="bilinear", antialias=True)[0, 0]  # so torch says how much
        counts = shares_NO != 0
        self.first_N = counts.int().argmax(1).int()
        self.count_N = (old - counts.flip(1).int().argmax(1) - self.first_N).int()
        most = int(self.count_N.max())
        at_NM = (self.first_N[:, None] + torch.arange(most, device="cpu")).clamp_max(old - 1).long()
        self.weights_NM = shares_NO.gather(1, at_NM).contiguous()
        self.side = SideWeights(
            old=old,
            new=new,
            most=most,
            first=self.first_N.data_ptr(),
            count=self.count_N.data_ptr(),
            weights=self.weights_NM.data_ptr(),
        )


_weights = lru_cache(maxsize=64)(_Weights)
