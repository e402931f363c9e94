"""timm and torchvision, where they are installed, beside a torch that does not load the latter's compiled part."""

from types import ModuleType

import pytest
import torch

OPERATORS = ("nms", "qnms")
"""Operators that torchvision describes when it is imported, and that its compiled part would have made."""


def imported(name: str) -> ModuleType:
    """The library, with those operators declared first where they are missing. Skips the test where it is not there."""
    for operator in OPERATORS:
        if not torch._C._jit_get_schemas_for_operator(f"torchvision::{operator}"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    module: ModuleType = pytest.importorskip(name)
    return module
