"""Native CPU kernels for elastic blocks and for images: the same function as the plain path, several times as fast."""

from trainonce.nn.native.blocks import DEPTHWISE, BlockSizes, calibrate, infer, mbconv
from trainonce.nn.native.calls import Norm, usable
from trainonce.nn.native.images import resize, varies, vary
from trainonce.nn.native.layers import norm_act, pointwise
from trainonce.nn.native.library import large_maps_kept, remark, tuned, why_not

__all__ = [
    "DEPTHWISE",
    "BlockSizes",
    "Norm",
    "calibrate",
    "infer",
    "large_maps_kept",
    "mbconv",
    "norm_act",
    "pointwise",
    "remark",
    "resize",
    "tuned",
    "usable",
    "varies",
    "vary",
    "why_not",
]
