"""OFA's published networks against a reference of their own: `ofa_reference.py`, written from their definition.

Their files cannot be had here. The reference has OFA's names for tensors and OFA's way to cut a subnet, and knows
nothing of the package; every number is random, matrices between kernels and statistics too.
"""

import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from trainonce.cli.app import app
from trainonce.data import load_dataset
from trainonce.errors import RunError, UserError
from trainonce.models import MobileNetV3, MobileNetV3Settings, ProxylessNAS, Supernet
from trainonce.models.mbconv import MBConvSupernet
from trainonce.models.ofa import OFA_NETWORKS, load_ofa
from trainonce.nn.kinds import spec_of
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory
from trainonce.run.importing import import_ofa
from trainonce.space import Architecture
from trainonce.subnets import read_subnet
from trainonce.training.loop import train_supernet

NAMES = sorted(OFA_NETWORKS)
SMALL = {"small mbv3": (MobileNetV3, 0.25), "small proxyless": (ProxylessNAS, 0.5)}
"""Narrow networks of the same definitions, where the width does not matter. Of proxyless, at 0.25 the first block's
channels would be as many before as behind it, which OFA's never are."""


@pytest.fixture(scope="module")
def ofa() -> Iterator[Any]:
    """The module `ofa_reference`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "support")
        yield importlib.import_module("ofa_reference")
    sys.modules.pop("ofa_reference")


@pytest.fixture(scope="module")
def small(ofa: Any) -> Iterator[Callable[[str], Any]]:
    """The reference of a narrow network; meanwhile `load_ofa` knows these too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, entry in SMALL.items():
            patch.setitem(OFA_NETWORKS, name, entry)
        yield lambda name: ofa.mbv3(0.25, 3) if name == "small mbv3" else ofa.proxyless(0.5, 3)


@pytest.fixture(scope="module")
def weights(ofa: Any, small: Callable[[str], Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = ofa.state_dict(small("small mbv3"))
    return found


def architecture(net: Supernet, ks: list[int], e: list[int], d: list[int], **fixed: int) -> Architecture:
    """The architecture of a choice as OFA writes it: an entry for each block of the largest network."""
    values, number = dict(fixed), 0
    for stage, depth in enumerate(d, start=1):
        values[f"stage{stage}.depth"] = depth
        for block in range(1, net.space[f"stage{stage}.depth"].values[-1] + 1):
            if block <= depth:
                values |= {f"stage{stage}.block{block}.kernel_size": ks[number]}
                values |= {f"stage{stage}.block{block}.expand_ratio": e[number]}
            number += 1
    return net.space.check(values)


def choices(reference: Any, rng: random.Random | None, *, largest: bool = False) -> tuple[list[int], ...]:
    blocks, most = len(reference.blocks()), [stage[-1] for stage in reference.stages]
    if rng is None:
        d = [depth if largest else min(2, depth) for depth in most]
        return [7 if largest else 3] * blocks, [6 if largest else 3] * blocks, d
    d = [rng.choice([2, 3, 4]) if depth == 4 else depth for depth in most]
    return [rng.choice([3, 5, 7]) for _ in range(blocks)], [rng.choice([3, 4, 6]) for _ in range(blocks)], d


def agree(ofa: Any, net: Supernet, reference: Any, state: dict[str, Tensor], choice: tuple[list[int], ...]) -> None:
    """In float64, where only a wrong definition makes a difference."""
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        want = ofa.forward(reference, {name: tensor.double() for name, tensor in state.items()}, x, *choice)
        found = net(x, architecture(net, *choice))
    assert 0.1 < float(want.std()) < 1e3
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def loaded(
    ofa: Any, small: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Any, ...]]:
    found, path = {}, tmp_path_factory.mktemp("ofa") / "file.pth"
    for name in SMALL:
        state = ofa.state_dict(small(name), seed=3)
        torch.save(state, path)
        found[name] = (load_ofa(path, name, resolutions=(64,)).double(), state)
    return found


class TestLogits:
    @pytest.mark.parametrize("name", NAMES)
    def test_of_the_published_networks(self, name: str, ofa: Any, tmp_path: Path) -> None:
        reference = ofa.REFERENCES[name](10)
        state = ofa.state_dict(reference, seed=NAMES.index(name))
        old_names = ofa.state_dict(reference, seed=NAMES.index(name), old_names=True)
        torch.save({"state_dict": old_names, "epoch": 119}, tmp_path / "file", _use_new_zipfile_serialization=False)
        with pytest.warns(UserWarning, match=r"file has no sums: whether its weights are whole cannot be checked"):
            net = load_ofa(tmp_path / "file", name, resolutions=(64,))
        assert not net.training
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
        smallest = net.space.smallest()
        with torch.no_grad():
            assert torch.equal(net(x, smallest), net.extract(smallest)(x))
        net.double()
        for choice in (choices(reference, None, largest=True), choices(reference, None)):
            agree(ofa, net, reference, state, choice)
        agree(ofa, net, reference, state, choices(reference, random.Random(5)))

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(SMALL)))
    def test_of_any_subnet(
        self, seed: int, name: str, ofa: Any, small: Callable[[str], Any], loaded: dict[str, tuple[Any, ...]]
    ) -> None:
        net, state = loaded[name]
        agree(ofa, net, small(name), state, choices(small(name), random.Random(seed)))

    def test_at_full_size_in_float32(self, ofa: Any, tmp_path: Path) -> None:
        name = "ofa_mbv3_d234_e346_k357_w1.0"
        reference = ofa.REFERENCES[name](1000)
        state = ofa.state_dict(reference)
        torch.save(state, tmp_path / "file")
        net = load_ofa(tmp_path / "file", name)
        choice = choices(reference, random.Random(1))
        x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        arch = architecture(net, *choice, resolution=224)
        with torch.no_grad():
            want, found = ofa.forward(reference, state, x, *choice), net(x, arch)
            assert torch.equal(net.extract(arch)(x), found)
        assert found.shape == (1, 1000)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        assert net.space["resolution"].values == (128, 160, 192, 224)


def test_the_cost_of_a_published_subnet() -> None:
    """The specialised network that OFA publishes as flops@595M: its net.config at 236 pixels; 9.1 M parameters."""
    net = MobileNetV3(MobileNetV3Settings(num_classes=1000, width_mult=1.2, resolutions=(236,)))
    stages = ("d3.k3e3.k5e4.k3e3", "d4.k5e4.k5e4.k3e6.k5e3", "d4.k7e6.k5e6.k3e3.k5e4", "d4.k3e6.k5e6.k7e6.k3e4")
    cost = net.cost_of(net.space.parse("_".join((*stages, "d4.k3e6.k3e6.k5e6.k3e3"))))
    assert round(cost.macs / 1e6) == 595
    assert round(cost.params / 1e6, 1) == 9.1


HOSTILE: tuple[Callable[[], Tensor], ...] = (
    lambda: torch.zeros(1).expand(10**10, 320),  # 12.8 TB by their shape, four bytes in the file
    lambda: torch.zeros(3, 320, device="meta"),
    lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]),
    lambda: torch.zeros(3, 320).to(torch.float8_e4m3fn),
    lambda: torch.zeros(3, 320).to_sparse(),
    lambda: torch.nn.Parameter(torch.zeros(3, 320)),  # which no state dict has
)
"""What `torch.load(weights_only=True)` gives as a tensor and no network can hold."""


def putting(make: Callable[[], Tensor]) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.update({"classifier.linear.weight": make()})


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: state.pop(name)


FIRST = "blocks.1.conv.depth_conv"


class TestRefusals:
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (without("first_conv.bn.bias"), r"is not a small mbv3: it lacks first_conv\.bn\.bias$"),
            (without("classifier.linear.weight"), r"has no classifier\.linear\.weight of two dimensions"),
            (without(f"{FIRST}.conv.7to5_matrix"), r"it lacks blocks\.1\.conv\.depth_conv\.conv\.7to5_matrix$"),
            (lambda s: s.update({"blocks.21.conv.x": torch.zeros(1)}), r"it also has blocks\.21\.conv\.x$"),
            (
                lambda s: s.update({f"{FIRST}.conv.conv.weight": torch.zeros(40, 1, 5, 5)}),
                r"depth_conv\.conv\.weight is \(40, 1, 5, 5\) in it, not \(48, 1, 7, 7\)",
            ),
            (
                lambda s: s[f"{FIRST}.bn.bn.running_var"].fill_(float("nan")),
                r"depth_conv\.bn\.running_var in it is not finite",
            ),
            (
                lambda s: s.update({"blocks.1.mobile_inverted_conv.depth_conv.bn.bn.bias": torch.zeros(48)}),
                r"blocks\.1\.conv\.depth_conv\.bn\.bias twice, under the names of two versions",
            ),
            (lambda s: s.update({"note": "hello"}), "what it has as 'note' is none"),
            (lambda s: s.update({"classifier.linear.weight": torch.zeros(1, 320)}), "num_classes: .*equal to 2"),
            (lambda s: s.clear(), "holds no state dict"),
            (
                lambda s: s.update({"first_conv.conv.weight": torch.full((8, 3, 3, 3), 1e300, dtype=torch.float64)}),
                r"first_conv\.conv\.weight in it is not finite",
            ),
            (
                lambda s: s.update({"classifier.linear.weight": torch.zeros(10**12, 0)}),
                r"classifier\.linear\.weight is \(1000000000000, 0\) in it, not \(1000000000000, 320\)",
            ),
            *((putting(make), r"'classifier\.linear\.weight' is none") for make in HOSTILE),
        ],
    )
    def test_of_tensors(
        self, change: Callable[[dict[str, Any]], object], says: str, weights: dict[str, Tensor], tmp_path: Path
    ) -> None:
        state: dict[str, Any] = {name: tensor.clone() for name, tensor in weights.items()}
        change(state)
        torch.save(state, tmp_path / "file")
        with pytest.raises(UserError, match=says):
            load_ofa(tmp_path / "file", "small mbv3", resolutions=(32,))

    def test_of_another_network(self, weights: dict[str, Tensor], tmp_path: Path) -> None:
        torch.save(weights, tmp_path / "file")
        says = r"is not a small proxyless: classifier\.linear\.weight is \(3, 320\) in it, not \(3, 640\)$"
        with pytest.raises(UserError, match=says):
            load_ofa(tmp_path / "file", "small proxyless")
        with pytest.raises(UserError, match="unknown OFA network 'ofa_resnet101'; the networks are ofa_mbv3_d234"):
            load_ofa(tmp_path / "file", "ofa_resnet101")

    def test_of_files(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        with pytest.raises(UserError, match="is not a file"):
            load_ofa(path, NAMES[0])
        for content in (b"", b"hello", b"PK\x03\x04", b"{}", bytes(1000)):
            path.write_bytes(content)
            with pytest.raises(UserError, match=r"is damaged(, or no file of weights: \S|: it is not a whole zip)"):
                load_ofa(path, NAMES[0])
        torch.save([1, 2], path)
        with pytest.raises(UserError, match="holds no state dict"):
            load_ofa(path, NAMES[0])

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_in_a_file_is_not_run(self, zipped: bool, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "run",)

        torch.save({"state_dict": Evil()}, tmp_path / "file", _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match="is damaged, or no file of weights"):
            load_ofa(tmp_path / "file", NAMES[0])
        assert not (tmp_path / "run").exists()
        torch.load(tmp_path / "file", weights_only=False)  # it would have
        assert (tmp_path / "run").exists()

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_any_tensor_is_a_sentence(
        self, weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Any tensor in place of one of a whole file: a `UserError`, or a network whose numbers are all finite."""
        path = tmp_path_factory.mktemp("hostile") / "file"
        sizes = st.sampled_from([(), (0,), (48,), (3, 320), (10**5, 1), (2, 320), (8, 3, 3, 3)])
        dtypes = st.sampled_from([torch.float16, torch.float32, torch.float64, torch.int64, torch.bool, torch.cfloat])
        values = st.sampled_from([0.0, 1e300, float("nan")])
        plain = st.builds(
            lambda size, value, dtype: torch.full(size, value, dtype=torch.float64).to(dtype), sizes, values, dtypes
        )

        @settings(max_examples=30, deadline=None, derandomize=True)
        @given(name=st.sampled_from(sorted(weights)), tensor=plain | st.sampled_from(HOSTILE).map(lambda make: make()))
        def check(name: str, tensor: Tensor) -> None:
            torch.save({**weights, name: tensor}, path)
            try:
                net = load_ofa(path, "small mbv3", resolutions=(32,))
            except UserError:
                return
            assert all(tensor.isfinite().all() for tensor in net.state_dict().values())

        check()

    def test_a_flipped_bit_is_refused_or_changes_nothing(
        self, small: Callable[[str], Any], weights: dict[str, Tensor], tmp_path: Path
    ) -> None:
        """Also in the middle of a tensor, which torch reads without a word."""
        path, rng = tmp_path / "file", random.Random(0)
        torch.save(weights, path)
        whole, want = path.read_bytes(), load_ofa(path, "small mbv3", resolutions=(32,)).state_dict()
        refused = 0
        for _ in range(200):
            content = bytearray(whole)
            content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
            try:
                found = load_ofa(path, "small mbv3", resolutions=(32,)).state_dict()
            except UserError as error:
                refused += "is damaged" in str(error)
            else:
                assert all(torch.equal(tensor, want[name]) for name, tensor in found.items())
        assert refused > 150

    def test_a_file_written_without_sums_is_said_to_be_unchecked(
        self, small: Callable[[str], Any], weights: dict[str, Tensor], tmp_path: Path
    ) -> None:
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(weights, tmp_path / "file")
        finally:
            torch.serialization.set_crc32_options(True)
        with pytest.warns(UserWarning, match="has no sums"):
            net = load_ofa(tmp_path / "file", "small mbv3", resolutions=(32,))
        assert torch.equal(net.state_dict()["classifier.weight"], weights["classifier.linear.weight"])

    @pytest.mark.filterwarnings("ignore:.* has no sums")
    @pytest.mark.parametrize("zipped", [True, False])
    def test_damage_is_a_sentence(
        self,
        zipped: bool,
        tmp_path_factory: pytest.TempPathFactory,
        damaged: Callable[[bytes], st.SearchStrategy[bytes]],
    ) -> None:
        path = tmp_path_factory.mktemp("damage") / "file"
        state = {"classifier.linear.weight": torch.ones(2, 3), "first_conv.bn.bias": torch.ones(4)}
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()

        @settings(max_examples=150, deadline=None, derandomize=True)
        @given(content=damaged(whole))
        def check(content: bytes) -> None:
            path.write_bytes(content)
            with pytest.raises(UserError):  # whole, it would lack the rest of the network
                load_ofa(path, "ofa_mbv3_d234_e346_k357_w1.0", resolutions=(32,))

        check()


def test_without_matrices_kernels_are_centres(weights: dict[str, Tensor], ofa: Any, small: Any, tmp_path: Path) -> None:
    """So OFA's code reads a file of networks trained without them: its matrices stay the identity."""
    torch.save({name: tensor for name, tensor in weights.items() if "_matrix" not in name}, tmp_path / "file")
    net = load_ofa(tmp_path / "file", "small mbv3", resolutions=(64,)).double()
    sides = {"5to3": 9, "7to5": 25}
    state = {n: torch.eye(sides[n.split(".")[-1][:4]]) if "_matrix" in n else t for n, t in weights.items()}
    agree(ofa, net, small("small mbv3"), state, choices(small("small mbv3"), random.Random(2)))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of each of three classes."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (folder / name).mkdir()
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "file"
    torch.save({"state_dict": weights}, path)
    return path


@pytest.fixture(scope="module")
def imported(file: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    options = ("--name", "small mbv3", "--data", str(pictures), "--resolutions", "24,32")
    done = CliRunner().invoke(app, ["import-ofa", str(file), *options, "--out", str(run), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["run"], found["family"], found["classes"]) == (str(run), "mobilenet_v3", 3)
    return run


class TestRun:
    def test_is_recorded_as_imported(self, imported: Path, file: Path) -> None:
        config = RunDirectory(imported).config()
        assert config.imported is not None
        assert (config.imported.name, config.imported.file) == ("small mbv3", str(file))
        assert config.provenance["imported"] == config.imported.model_dump()
        assert config.recipe.name == "imported"
        assert [round(phase.lr, 4) for phase in config.recipe.phases[1:4]] == [0.03, 0.0025, 0.0075]
        net, step = RunDirectory(imported).load_supernet()
        assert step == 0
        want = load_ofa(file, "small mbv3", resolutions=(24, 32)).state_dict()
        assert all(torch.equal(tensor, want[name]) for name, tensor in net.state_dict().items())

    def test_evaluate_extract_and_report(self, imported: Path, file: Path) -> None:
        runner = CliRunner()
        few = ("--per-bucket", "1", "--calibration-images", "8", "--workers", "1", "--device", "cpu")
        done = runner.invoke(app, ["evaluate", str(imported), *few])
        assert done.exit_code == 0, done.output
        lines = RunDirectory(imported).population()
        assert len(lines) == 6
        done = runner.invoke(app, ["extract", str(imported), "--max-macs", "1000", "--out", str(imported / "best")])
        assert done.exit_code == 0, done.output
        best, described = read_subnet(imported / "best")
        description = described.to_json()
        assert description["trained"]["provenance"]["imported"]["name"] == "small mbv3"
        assert description["classes"] == ["ant", "bee", "cat"]
        assert spec_of(best).resolution in (24, 32)
        done = runner.invoke(
            app, ["extract", str(imported), "largest", "--no-recalibrate", "--out", str(imported / "cut")]
        )
        assert done.exit_code == 0, done.output
        cut, _ = read_subnet(imported / "cut")
        net, x = load_ofa(file, "small mbv3", resolutions=(24, 32)), torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(cut(x), net(x, net.space.largest()))
        done = runner.invoke(app, ["report", str(imported), "--out", str(imported / "page.html")])
        assert done.exit_code == 0, done.output

    def test_is_trained_further_on_other_classes(self, imported: Path, pictures: Path, tmp_path: Path) -> None:
        """From the weights that were imported, of which `zero_init_residual` changes nothing."""
        other = tmp_path / "pictures"
        for name in ("ant", "bee"):
            (other / name).mkdir(parents=True)
            for file in (pictures / name).iterdir():
                (other / name / file.name).write_bytes(file.read_bytes())
        options = ("--from", str(imported), "--image-size", "24", "--recipe", "quick", "--passes", "0.01")
        done = CliRunner().invoke(app, ["train", str(other), *options, "--out", str(tmp_path / "run"), "--probes", "0"])
        assert done.exit_code == 0, done.output
        run, old = RunDirectory(tmp_path / "run"), RunDirectory(imported).load_supernet()[0]
        config, first = run.config(), checkpoint.load_step(run.checkpoints, 0).tensors["weights"]
        assert config.start is not None
        assert (config.start.network, config.start.fresh_head) == ("mobilenet_v3", True)
        assert config.recipe.zero_init_residual
        assert [n for n, t in old.state_dict().items() if not torch.equal(t, first[n])] == sorted(old.head())[::-1]
        net = run.load_supernet()[0]
        assert (net.settings.num_classes, net.settings.resolutions) == (2, (18, 24))

    def test_cannot_be_resumed_or_made_twice(self, imported: Path, file: Path, pictures: Path) -> None:
        run, data = RunDirectory(imported), load_dataset(str(pictures), image_size=32)
        before = run.config_file.read_bytes()
        with pytest.raises(UserError, match="were imported: no training stopped there"):
            train_supernet(run.build_supernet(), run.config().recipe, data, run, resume=True)
        with pytest.raises(UserError, match="already holds a run"):
            import_ofa(file, "small mbv3", data, run, resolutions=(24, 32))
        assert run.config_file.read_bytes() == before

    def test_needs_images_of_its_classes(self, file: Path, pictures: Path, tmp_path: Path) -> None:
        data, run = load_dataset(str(pictures), image_size=32), RunDirectory(tmp_path / "run")
        with pytest.raises(UserError, match=r"have 32 pixels a side, but small mbv3 in .* has 48"):
            import_ofa(file, "small mbv3", data, run, resolutions=(32, 48))
        with pytest.raises(UserError, match=r"resolutions must be distinct, rising"):
            import_ofa(file, "small mbv3", data, run, resolutions=(32, 24))
        digits = load_dataset("digits", image_size=32)
        with pytest.raises(UserError, match=r"have 10 classes, but small mbv3 in .* has 3"):
            import_ofa(file, "small mbv3", digits, run, resolutions=(32,))
        assert not run.path.exists()

    def test_a_full_disk_leaves_no_half_run(
        self, file: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise RunError("cannot write the checkpoint: no space left")

        data, run = load_dataset(str(pictures), image_size=32), RunDirectory(tmp_path / "run")
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", refuse)
            with pytest.raises(RunError, match="no space left"):
                import_ofa(file, "small mbv3", data, run, resolutions=(32,))
        net = import_ofa(file, "small mbv3", data, run, resolutions=(32,))
        assert isinstance(net, MBConvSupernet)
        assert run.load_supernet()[1] == 0
