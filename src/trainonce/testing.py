"""What a family of supernets owes, checked: for families of your own, in a test of your own.

    from trainonce.testing import check_family

    def test_my_family(tmp_path):
        check_family(MyFamily, tmp_path, channels=16)

Every check raises `AssertionError` with a sentence. It takes about half a minute of one core.
"""

import copy
import importlib.util
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainonce.cost.macs import counted_cost
from trainonce.cost.memory import model_size, peak_memory
from trainonce.data import DataSet, load_dataset
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.models import Supernet, family_named
from trainonce.nn.kinds import read_spec, spec_of, written
from trainonce.recipes import RECIPES, Recipe
from trainonce.run.directory import RunDirectory
from trainonce.sampling import MacsSampler
from trainonce.space import Architecture, derived_rng
from trainonce.subnets import describe_subnet, read_subnet, verify_subnet, write_subnet
from trainonce.training.loop import train_supernet

CALIBRATION = EvaluateSettings(calibration_images=64, calibration_batch=32)
ROUNDING = 1e-4
"""How far losses may be apart that two ways of the same arithmetic give, as a part of them."""
SUBNETS = 5
"""Random subnets of each check, beside the smallest and the largest."""


def check_family(family: type[Supernet], folder: str | Path, *, image_size: int = 8, **fields: Any) -> None:
    """Raise `AssertionError` with a sentence where a family does not hold what `Supernet` says.

    Its networks are built for handwritten digits (grey, 10 classes) of `image_size` pixels with these `fields` of its
    settings: choose small ones. Runs and subnets are written into `folder`.
    """
    folder = Path(folder)
    settings = family.settings_type.for_images(image_size=image_size, in_channels=1, num_classes=10, **fields)
    data = load_dataset("digits", image_size=image_size)
    net = family(settings, seed=0)
    check_building(net)
    check_subnets(net)
    check_costs(net)
    check_channels(net)
    check_recipes(net, data, folder / "recipes")
    check_resume(net, data, folder / "resume")
    check_stages(net, data, folder)


def archs_of(net: Supernet, count: int = SUBNETS) -> Iterator[Architecture]:
    """The smallest subnet, the largest and some random ones."""
    rng = derived_rng("testing")
    yield from (net.space.smallest(), net.space.largest(), *(net.space.sample(rng) for _ in range(count)))


def images_for(net: Supernet, arch: Architecture, count: int = 4) -> Tensor:
    """Noise [count, C, H, W] at a subnet's resolution, in the memory format of training."""
    spec, generator = net.describe(arch), torch.Generator().manual_seed(1)
    x_BCHW = torch.randn(count, spec.in_channels, spec.resolution, spec.resolution, generator=generator)
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def check_building(net: Supernet) -> None:
    """A network follows from its settings and seed, draws from no global generator, and is found by its name."""
    before = torch.get_rng_state(), random.getstate()
    again, other = type(net)(net.settings, seed=0), type(net)(net.settings, seed=1)
    assert torch.equal(before[0], torch.get_rng_state()), "building it drew from torch's global generator: fork it"
    assert before[1] == random.getstate(), "building it drew from Python's global generator"
    assert _equal(net, again), "two networks of one seed differ"
    assert not _equal(net, other), "networks of two seeds are equal"
    assert family_named(net.family) is type(net), f"its name {net.family!r} names another family"
    assert type(net.settings).parse(net.settings.model_dump(mode="json"), where="settings") == net.settings
    assert net.space.count() > 1, "its space has one subnet"
    for choice in net.space.choices:
        assert choice.role is not None, f"{choice.name} has no role, so no recipe can name it"


@torch.no_grad()
def check_subnets(net: Supernet) -> None:
    """An extracted network is the subnet, to the last bit, and its sizes can be written down."""
    net = _moved(net).eval()
    for arch in archs_of(net):
        spec, plain, x_BCHW = net.describe(arch), net.extract(arch), images_for(net, arch)
        assert spec_of(plain) == spec, f"{arch}: the extracted network has another spec than `describe` gives"
        assert hash(spec) == hash(net.describe(arch)), f"{arch}: its spec is not hashable"
        logits = net(x_BCHW, arch)
        assert logits.shape == (len(x_BCHW), spec.num_classes), f"{arch}: its logits are {tuple(logits.shape)}"
        assert torch.equal(logits, plain(x_BCHW)), f"{arch}: the extracted network computes something else"
        values = json.loads(json.dumps(written(spec)))
        assert read_spec(values, beside=Path("/nowhere")) == spec, f"{arch}: its spec is not what its JSON gives"
        found, wanted = (set(names) - _counters(plain) for names in (net.slices(arch), plain.state_dict()))
        assert found == wanted, f"{arch}: its slices have other names than the plain network"
        for name, module in plain.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert net.shared_name(arch, name), f"{arch}: {name} has no name in the supernet"


def check_costs(net: Supernet) -> None:
    """Costs are those that torch counts, and a subnet can be drawn at any of them."""
    for arch in archs_of(net):
        spec = net.describe(arch)
        assert net.cost_of(arch) == counted_cost(spec), f"{arch}: its cost is not what torch counts"
        assert peak_memory(spec) > 0
        assert model_size(spec) > 0
    sampler, rng = MacsSampler(net.cost), derived_rng("testing", "macs")
    ends = [net.cost_of(arch).macs for arch in (net.space.smallest(), net.space.largest())]
    assert [sampler.min_macs, sampler.max_macs] == ends, "its smallest and largest subnets are not the ends of MACs"
    for arch in archs_of(net):
        macs = net.cost_of(arch).macs
        assert net.cost_of(sampler.sample(rng, macs, macs)).macs == macs


@torch.no_grad()
def check_channels(net: Supernet) -> None:
    """Sorting channels changes no subnet by more than rounding."""
    net = _moved(net).eval()
    archs = list(archs_of(net))
    before = [net(images_for(net, arch), arch) for arch in archs]
    net.sort_channels(net.space)
    for arch, logits in zip(archs, before, strict=True):
        after = net(images_for(net, arch), arch)
        torch.testing.assert_close(after, logits, rtol=1e-3, atol=1e-4, msg=f"{arch}: sorting channels changed it")
    net.zero_init_residual()
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


def check_recipes(net: Supernet, data: DataSet, folder: str | Path) -> None:
    """Every recipe trains it for some steps."""
    for name, recipe in RECIPES.items():
        trained = copy.deepcopy(net)
        assert train_supernet(trained, _short(recipe, data), data, RunDirectory(Path(folder) / name), seed=0)
        assert not _equal(trained, net), f"{name} did not change it"


def check_resume(net: Supernet, data: DataSet, folder: str | Path) -> None:
    """Stopped and resumed, training ends with the weights of one that was not, to the last bit."""
    recipe, steps, folder = _short(RECIPES["ps"], data), 0, Path(folder)

    def soon() -> bool:
        nonlocal steps
        steps += 1
        return steps == 5

    straight, stopped, resumed = (copy.deepcopy(net) for _ in range(3))
    train_supernet(straight, recipe, data, RunDirectory(folder / "straight"), seed=0)
    assert not train_supernet(stopped, recipe, data, RunDirectory(folder / "stopped"), seed=0, should_stop=soon)
    assert train_supernet(resumed, recipe, data, RunDirectory(folder / "stopped"), seed=0, resume=True)
    assert _equal(straight, resumed), "resumed, it ends with other weights"


def check_stages(net: Supernet, data: DataSet, folder: str | Path) -> None:
    """A run of it can be loaded, scored and taken out, into a directory that loads without trainonce."""
    folder = Path(folder)
    run = RunDirectory(folder / "run")
    train_supernet(copy.deepcopy(net), _short(RECIPES["rss"], data), data, run, seed=0)
    loaded, _ = run.load_supernet()
    evaluator = Evaluator(data, "validate", CALIBRATION)
    for number, arch in enumerate(archs_of(loaded, 2)):
        plain = evaluator.recalibrated(loaded, arch)
        found, expected = evaluator(loaded, arch), evaluator.score(plain)
        close = math.isclose(found.loss, expected.loss, rel_tol=ROUNDING)  # top-1 can be a tie, which rounding decides
        assert close, f"{arch}: its score depends on what was scored before"
        place = folder / "subnets" / str(number)
        write_subnet(place, plain, describe_subnet(loaded, arch, data))
        verify_subnet(place, plain)
        assert read_subnet(place)[1].architecture == str(arch)
        x_BCHW = images_for(loaded, arch).contiguous()
        with torch.inference_mode():
            alone = _load_alone(place)(x_BCHW)
            assert torch.equal(alone, plain(x_BCHW)), f"{arch}: loaded by its own model.py it computes something else"


def _load_alone(place: Path) -> nn.Module:
    """The network of a subnet's directory, by the code that lies there."""
    imports = [line for line in (place / "model.py").read_text().splitlines() if "import" in line.split()]
    assert not any("trainonce" in line for line in imports), f"its plain network needs trainonce: {imports}"
    described = importlib.util.spec_from_file_location("trainonce_subnet_alone", place / "model.py")
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    sys.modules[described.name] = module  # dataclasses look themselves up
    try:
        described.loader.exec_module(module)
        network: nn.Module = module.load(place)
    finally:
        del sys.modules[described.name]
    return network


def _short(recipe: Recipe, data: DataSet) -> Recipe:
    """The recipe at some steps a phase, in small batches."""
    steps = 3 * len(recipe.phases) / (len(data.train) // 16)
    return recipe.with_batch_size(16).scaled(steps / recipe.epochs)


@torch.no_grad()
def _moved(net: Supernet) -> Supernet:
    """A copy whose batch norms have statistics and weights of their own, as if trained."""
    moved, generator = copy.deepcopy(net), torch.Generator().manual_seed(2)
    for name, tensor in moved.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            around = 1.0 if name.endswith(("weight", "running_var")) else 0.0
            tensor.copy_(around + 0.2 * torch.rand(tensor.shape, generator=generator))
    return moved


def _counters(plain: nn.Module) -> set[str]:
    return {name for name in plain.state_dict() if name.endswith("num_batches_tracked")}


def _equal(one: nn.Module, other: nn.Module) -> bool:
    others = other.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in one.state_dict().items())
