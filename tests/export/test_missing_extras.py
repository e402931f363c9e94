"""A target whose extra is not installed says which one it needs, when it writes and when it opens."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from trainonce.errors import UserError
from trainonce.export import TARGETS

Export = Callable[[int], Any]


@pytest.mark.parametrize(
    ("name", "extra", "modules"),
    [
        ("openvino-int8", "openvino", ("openvino",)),
        ("executorch-int8", "executorch", ("executorch",)),
        ("coreml", "coreml", ("coremltools",)),
        ("litert", "litert", ("ai_edge_litert",)),
        ("litert-fp16", "litert", ("ai_edge_litert",)),
        ("litert-int8", "litert", ("ai_edge_litert",)),
        ("ncnn", "ncnn", ("pnnx", "ncnn")),
        ("ncnn-fp16", "ncnn", ("pnnx", "ncnn")),
        ("tflite-micro", "tflite-micro", ("tflite_micro",)),
    ],
)
def test_it_is_named(
    exported: Export, monkeypatch: pytest.MonkeyPatch, name: str, extra: str, modules: tuple[str, ...]
) -> None:
    for module in [found for found in sys.modules if found.split(".")[0] in modules]:
        monkeypatch.delitem(sys.modules, module)
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    target, sentence = TARGETS[name], rf"^this needs an extra: pip install 'trainonce\[{extra}\]'"
    with pytest.raises(UserError, match=sentence):
        target.write(exported(0).expected.reference, 1)
    if name not in ("tflite-micro", "coreml"):  # of which one looks at the hash first, the other opens nothing
        with pytest.raises(UserError, match=sentence):
            target.open(dict.fromkeys(target.files, b"x" * 100), 1, "x")
