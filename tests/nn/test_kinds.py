"""Plain networks are written down by kind, and nothing beside a file is ever imported because of what it says."""

import sys
from pathlib import Path

import pytest
from tests.support.small_resnet_plain import SmallSpec

from trainonce.errors import UserError
from trainonce.nn.kinds import InBlocks, PlainSpec, kind_of, read_spec, source_of, written
from trainonce.nn.plain import BlockSpec, NetworkSpec
from trainonce.nn.plain_resnet import ResidualSpec, ResNetSpec

MBCONV = NetworkSpec(
    resolution=8,
    in_channels=1,
    stem_channels=8,
    stem_stride=2,
    blocks=(
        BlockSpec(
            in_channels=8,
            mid_channels=16,
            out_channels=8,
            kernel_size=3,
            stride=2,
            se_channels=0,
            activation="relu",
            expand=True,
        ),
    ),
    final_channels=16,
    feature_channels=0,
    num_classes=3,
    dropout=0.0,
)
RESNET = ResNetSpec(
    resolution=8,
    in_channels=1,
    stem_channels=8,
    stem_stride=1,
    blocks=(
        ResidualSpec(in_channels=8, mid_channels=16, out_channels=16, kernel_size=3, stride=2, bottleneck=False),
        ResidualSpec(in_channels=16, mid_channels=8, out_channels=16, kernel_size=3, stride=1, bottleneck=True),
    ),
    num_classes=3,
    dropout=0.0,
)
OWN = SmallSpec(resolution=8, in_channels=1, channels=4, widths=(2, 4), num_classes=3)
NOWHERE = Path("/nowhere")


@pytest.mark.parametrize(
    ("spec", "kind"), [(MBCONV, None), (RESNET, "resnet"), (OWN, "tests.support.small_resnet_plain:SmallSpec")]
)
def test_a_spec_is_read_back_as_it_was_written(spec: PlainSpec, kind: str | None) -> None:
    values = written(spec)
    assert values.get("kind") == kind
    assert kind_of(spec) == (kind or "mbconv")
    assert read_spec(values, beside=NOWHERE) == spec
    compile(source_of(spec), "model.py", "exec")


def test_maps_get_smaller_as_strides_say() -> None:
    assert isinstance(MBCONV, InBlocks)
    assert MBCONV.map_sizes == (4, 2)
    assert isinstance(RESNET, InBlocks)
    assert RESNET.map_sizes == (8, 4, 4)
    assert not isinstance(OWN, InBlocks)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("rnn", r"unknown kind of network 'rnn'; there are mbconv, resnet, graph, and your own as package\."),
        ("os.path", "unknown kind of network 'os.path'"),
        ("os:", "unknown kind of network 'os:'"),
        ("os;print:x", "unknown kind of network"),
        ("no_such_module:Spec", "the kind of network no_such_module:Spec cannot be imported: No module named"),
        ("json:Spec", "the kind of network json:Spec cannot be imported: module 'json' has no attribute 'Spec'"),
        ("json:JSONDecoder", "json:JSONDecoder is not a kind of network"),
    ],
)
def test_a_kind_that_is_none(kind: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_spec({**written(OWN), "kind": kind}, beside=NOWHERE)


@pytest.mark.parametrize("package", [False, True])
def test_code_beside_a_file_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: bool) -> None:
    """Not even where Python would find it: a directory from a stranger is data."""
    place = tmp_path / "subnet"
    place.mkdir()
    evil = "raise SystemExit('executed')\n"
    if package:
        (place / "evil").mkdir()
        (place / "evil" / "__init__.py").write_text(evil)
    else:
        (place / "evil.py").write_text(evil)
    monkeypatch.syspath_prepend(place)
    with pytest.raises(UserError, match=r"the kind of network evil:Spec lies in .* itself, whose code is not executed"):
        read_spec({"kind": "evil:Spec"}, beside=place)
    assert "evil" not in sys.modules
