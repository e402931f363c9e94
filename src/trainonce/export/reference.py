"""What an exported file is held against: the extracted network, the supernet it came from, and images."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from trainonce.data import DataSet, Split
from trainonce.data.augment import normalise
from trainonce.errors import RunError, UserError
from trainonce.export.description import FileDescription, Run, describe_file
from trainonce.export.onnx import to_onnx
from trainonce.export.tools import weights_sha256
from trainonce.export.torch_export import program_of
from trainonce.models import Supernet
from trainonce.nn.fast import in_fastest_layout
from trainonce.nn.kinds import spec_of
from trainonce.nn.plain import resize
from trainonce.run.directory import RunDirectory
from trainonce.space import Architecture
from trainonce.subnets import read_subnet
from trainonce.subnets.description import SubnetDescription

STATISTICS = ("running_mean", "running_var")
MOST_IMAGES, MOST_PIXELS = 128, 2**18
"""Images in a call, and pixels of them: of fewer torch turns weights too often, of more the maps leave the caches."""
SUPERNET_IMAGES = 256
"""As many test images go through the supernet too where it agrees on them to the last bit: so do its weights then."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A subnet and what there is to compare it with."""

    path: Path
    """The subnet's directory."""
    network: nn.Module
    """The extracted network, in evaluation mode on the CPU."""
    file: FileDescription
    """What travels in its exported files."""
    random_BCHW: Tensor
    """Noise, normalised as images are."""
    supernet: Run | None
    """The supernet, called as the subnet and with the subnet's batch-norm statistics."""
    no_supernet: str
    """Why there is no supernet, where there is none."""
    data: DataSet | None
    """The images of the run."""
    no_data: str
    """Why there are none, where there are none."""

    @cached_property
    def fastest(self) -> nn.Module:
        """The network with its weights in the order in which torch is fastest."""
        return in_fastest_layout(self.network)

    @cached_property
    def onnx(self) -> bytes:
        """The network's ONNX file, made once for all targets that start from it."""
        return to_onnx(self.network, self.file, lambda *_: self.program)

    @cached_property
    def program(self) -> ExportedProgram:
        """The network's operations, found once for all targets that start from them."""
        return program_of(self.network, self.file)

    @cached_property
    def supernet_rows(self) -> Tensor:
        """The test images that are enough for a supernet that agrees, spread evenly over the split."""
        count = 0 if self.data is None else len(self.data.test)
        return torch.arange(min(count, SUPERNET_IMAGES)) * count // max(1, min(count, SUPERNET_IMAGES))

    def counted(self) -> str:
        """How many images networks are compared on, in words."""
        tested = 0 if self.data is None else len(self.data.test)
        return f"{len(self.random_BCHW)} random{f' and {tested:,} test' if tested else ''} images"

    def inputs(self, split: Split) -> Iterator[Tensor]:
        """All images of a split, in order, as the network takes them."""
        assert self.data is not None
        resolution = self.file.preprocessing.resolution
        for _, images_BCHW, _ in split.in_order(images_a_call(resolution)):
            x_BCHW = normalise(images_BCHW.cpu(), mean=self.data.mean, std=self.data.std)
            yield resize(x_BCHW, resolution)

    @torch.inference_mode()
    def logits(
        self, run: Run, *, layout: torch.memory_format = torch.contiguous_format, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The logits of the random images, and of the test split where there is one: all of it, or those `rows`.

        `layout` is how the test images lie in memory; the random ones lie as a served network gets them.
        """
        random_NK = run(self.random_BCHW)
        if self.data is None:
            return random_NK, None
        test = self.data.test
        images = self.inputs(test if rows is None else test.take(rows.numpy()))
        return random_NK, torch.cat([run(x_BCHW.contiguous(memory_format=layout)) for x_BCHW in images])


def images_a_call(resolution: int) -> int:
    """How many images of a resolution a network takes at once while it is compared."""
    return max(1, min(MOST_IMAGES, MOST_PIXELS // resolution**2))


def read_reference(
    path: str | Path,
    *,
    run: str | Path | None = None,
    data_dir: str | Path | None = None,
    moved_to: DataSet | str | Path | None = None,
    loaded: DataSet | None = None,
    images: int = 64,
) -> Reference:
    """Read a subnet, and the supernet and the images that it came from.

    `run` is the run's directory: without it the one that the subnet names, or else the one in which it lies. A supernet
    that is not the subnet's any more is left out with the reason; so are a run and images that are not there, unless
    `run` was given. `data_dir` and `moved_to` say where the run's images are now; `loaded` are those images where the
    caller has them already. `images` is how many random ones there are. Raises `UserError` for a directory that is no
    subnet, and for a `run` that was given and is none or whose images cannot be used.
    """
    path = Path(path)
    network, description = read_subnet(path)
    file = describe_file(description, weights_sha256(network), where=str(path))
    supernet, no_supernet, data, no_data = None, "", None, ""
    directory = RunDirectory(run or _home(path, description))
    if run is not None:
        directory.config()
    try:
        supernet = _supernet(directory, network, description)
    except (UserError, RunError) as error:
        no_supernet = str(error)
    try:
        data = loaded or directory.load_data(data_dir, moved_to=moved_to)
        _refuse_other_images(data, file)
    except (UserError, RunError) as error:
        if run is not None:
            raise
        data, no_data = None, str(error)
    return Reference(
        path=path,
        network=network,
        file=file,
        random_BCHW=_noise(file, images),
        supernet=supernet,
        no_supernet=no_supernet,
        data=data,
        no_data=no_data,
    )


def _home(path: Path, description: SubnetDescription) -> Path:
    """The run that the subnet names; the one in which it lies where it names none, or one that is gone."""
    named = description.trained.run if description.trained else None
    places = [*([Path(named)] if named is not None else []), path.resolve().parent.parent]
    return next((place for place in places if RunDirectory(place).config_file.exists()), places[0])


def _supernet(run: RunDirectory, network: nn.Module, description: SubnetDescription) -> Run:
    """The run's supernet as this subnet. Raises `UserError` where it is not the one that the subnet was taken from."""
    trained = description.trained
    if trained is not None and trained.finetuned is not None:
        raise UserError("the subnet was fine-tuned, so its weights are not the supernet's any more")
    if description.fused:
        raise UserError("its parallel convolutions were merged, so its weights are not the supernet's any more")
    then = None if trained is None else trained.step
    if then is not None and then in run.kept_steps():
        net, step = run.load_kept(then), then
    else:
        net, step = run.load_supernet()
    arch = net.space.parse(description.architecture)
    if net.describe(arch) != spec_of(network):
        raise UserError(f"{run.path} holds another supernet than the one that the subnet was taken from")
    if then != step:
        raise UserError(f"{run.path} has been trained on: the subnet is of step {then}, its weights of step {step}")
    give_statistics(net, arch, network)
    return net.bind(arch)


@torch.no_grad()
def give_statistics(net: Supernet, arch: Architecture, network: nn.Module) -> None:
    """Write a plain network's batch-norm statistics into the supernet, where `arch` reads them.

    This changes `net`, for which other subnets' statistics are then wrong: give it a supernet of your own.
    """
    given = {name: t for name, t in network.state_dict().items() if name.endswith(STATISTICS)}
    net.keep_statistics(arch, given)
    now = net.slices(arch)
    assert all(torch.allclose(now[name], tensor, rtol=0, atol=0, equal_nan=True) for name, tensor in given.items())


def _refuse_other_images(data: DataSet, file: FileDescription) -> None:
    how = file.preprocessing
    if (data.class_names, data.channels, data.mean, data.std) != (file.classes, how.channels, how.mean, how.std):
        raise UserError(f"the images of {data.name} have other classes or another normalisation than the subnet")


def _noise(file: FileDescription, count: int) -> Tensor:
    how = file.preprocessing
    shape = (count, how.channels, how.resolution, how.resolution)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return normalise(pixels, mean=how.mean, std=how.std)
