"""What the library asks of a family of supernets, and its general ways for the rest."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from trainonce.cost.macs import Cost, CostModel
from trainonce.errors import UserError
from trainonce.nn import native
from trainonce.nn.kinds import PlainSpec
from trainonce.nn.ops import ElasticBatchNorm2d, ElasticDepthwiseConv2d, Slices
from trainonce.nn.plain import resize
from trainonce.settings import Settings
from trainonce.space import Architecture, SearchSpace

Weigh = Callable[[Tensor], Tensor]
"""Gives of a parameter a tensor of its shape: how much each of its numbers counts, 0 or more."""


class FamilySettings(Settings):
    """What a supernet is built from: the images it is for; a family adds its geometry."""

    resolutions: tuple[int, ...] = (32,)
    """Sides of the square input in pixels, rising; more than one makes the resolution elastic."""
    in_channels: int = Field(3, ge=1)
    """Channels of the images: 3 for colour, 1 for grey."""
    num_classes: int = Field(ge=2)
    """Number of classes."""

    geometries: ClassVar[Mapping[str, Mapping[str, object]]] = {"default": {}}
    """Named geometries: what they set of the other fields. The first is the default where a family does not choose."""

    @classmethod
    def default_geometry(cls, image_size: int) -> str:
        """The geometry for images of a size where a person names none."""
        del image_size
        return next(iter(cls.geometries))

    @classmethod
    def geometry(cls, name: str, image_size: int) -> Mapping[str, object]:
        """The fields of a named geometry for images of a size."""
        del image_size
        return cls.geometries[name]

    @classmethod
    def for_images(
        cls, *, image_size: int, in_channels: int, num_classes: int, geometry: str | None = None, **fields: Any
    ) -> Self:
        """Settings for images of a size, in a named geometry or the family's default for that size.

        Further fields override the geometry's. Raises `UserError` that names the valid geometries or fields.
        """
        name = geometry or cls.default_geometry(image_size)
        if name not in cls.geometries:
            raise UserError(f"unknown geometry {name!r}; the geometries are {', '.join(cls.geometries)}")
        given = {"resolutions": (image_size,), "in_channels": in_channels, "num_classes": num_classes}
        return cls.parse({**given, **cls.geometry(name, image_size), **fields}, where=f"geometry {name!r}")


class Supernet(nn.Module, ABC):
    """A network whose weights are shared by every architecture of `space`.

    It is called with the architecture: `net(x, arch)`. There is no current subnet.
    A family is a subclass that sets `settings_type`, takes `(settings, *, seed=0)`, sets `space` and `cost`, and
    defines the abstract methods; `trainonce.testing.check_family` says whether it holds what it owes. The rest has a
    general way, which a family may replace by a faster one.
    """

    family: ClassVar[str]
    """Names the family in a run directory: the name it is registered by, else `package.module:Class`."""
    settings_type: ClassVar[type[FamilySettings]]
    """What a network of the family is built from."""
    settings: FamilySettings
    space: SearchSpace
    """Its architectures."""
    cost: CostModel
    """Their MACs and parameters: those of the extracted networks."""

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if "family" not in cls.__dict__:
            cls.family = f"{cls.__module__}:{cls.__qualname__}"

    def __init__(self, settings: Any, *, seed: int = 0) -> None:
        """Of `settings`, a `settings_type`. A family makes its layers, then calls `reset_parameters(seed)`."""
        del seed
        super().__init__()
        self.settings = settings

    @property
    def ways_to_smaller(self) -> str:
        """What a person can do to have smaller subnets than the smallest, in words after "make all of them smaller"."""
        return "with --width or --image-size"

    def part_of(self, parameter: str) -> str:
        """The block, or the fixed part, that a parameter of this name belongs to: measures are of each by itself.

        In general the module in `blocks`, such as `stage1.block2` of `blocks.stage1_block2`, or the outermost one.
        """
        first, *rest = parameter.split(".")
        return rest[0].replace("_", ".") if first == "blocks" else first

    @abstractmethod
    def forward(self, x_BCHW: Tensor, arch: Architecture) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes], through the subnet `arch`."""

    @abstractmethod
    def describe(self, arch: Architecture) -> PlainSpec:
        """The plain network that `arch` is. Raises `UserError` if it is not in the space."""

    @abstractmethod
    def slices(self, arch: Architecture) -> Slices:
        """The state dict of the plain network of `arch`, cut from the shared weights (running statistics as views)."""

    @abstractmethod
    def sort_channels(self, kept: SearchSpace, weigh: Weigh = torch.abs) -> None:
        """Order the channels by importance so that every subnet of `kept` computes the same as before.

        `weigh` gives of a parameter how much each of its numbers counts.
        """

    def zero_init_residual(self) -> None:
        """Set the last batch-norm scale of every residual block to zero (BigNAS, arXiv 2003.11142).

        In general there are none.
        """

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Initialise all weights and statistics, from `seed` alone.

        In general convolutions are drawn normally with a variance of 2 / fan-out (He 2015), matrices uniformly within
        1 / sqrt(fan-in); norms start as the identity, and so do the matrices that make smaller kernels.
        """
        generator = torch.Generator().manual_seed(seed)
        norms = [name for name, m in self.named_modules() if isinstance(m, ElasticBatchNorm2d | nn.BatchNorm2d)]
        ones = {f"{name}.{part}" for name in norms for part in ("weight", "running_var")}
        kernels = [name for name, m in self.named_modules() if isinstance(m, ElasticDepthwiseConv2d)]
        identities = tuple(f"{name}.transforms." for name in kernels)
        for name, tensor in self.state_dict(keep_vars=True).items():
            fresh = torch.empty(tensor.shape, dtype=tensor.dtype)
            if name.startswith(identities):
                nn.init.eye_(fresh)
            elif tensor.ndim == 4:
                nn.init.kaiming_normal_(fresh, mode="fan_out", generator=generator)
            elif tensor.ndim == 2:
                bound = tensor.shape[1] ** -0.5
                nn.init.uniform_(fresh, -bound, bound, generator=generator)
            else:
                fresh.fill_(1 if name in ones else 0)
            tensor.copy_(fresh)

    def shared_name(self, arch: Architecture, name: str) -> str:
        """What the batch norm of a subnet's plain network by that name is called, whatever subnet shares it.

        In general the name that the supernet's own state dict has for what it is cut from.
        """
        place = self.slices(arch)[f"{name}.running_mean"].data_ptr()
        found = [own for own, tensor in self.state_dict().items() if tensor.numel() and tensor.data_ptr() == place]
        assert found, f"running statistics of {name} are not cut as views"
        return found[0].removesuffix(".running_mean")

    @torch.no_grad()
    def keep_statistics(self, arch: Architecture, statistics: Slices) -> None:
        """Write running statistics, under the names of the plain network of `arch`, where the subnet reads them.

        In general what `slices` gives of them are views.
        """
        cut = self.slices(arch)
        for name, tensor in statistics.items():
            cut[name].copy_(tensor)

    def sized(self, x_BCHW: Tensor, resolution: int) -> Tensor:
        """Images at a subnet's resolution: as an extracted network has them; in training mode by the native kernels."""
        return (native.resize if self.training else resize)(x_BCHW, resolution)

    def cost_of(self, arch: Architecture) -> Cost:
        """MACs and parameters of the extracted network."""
        return self.cost(self.space.check(arch))

    def head(self) -> frozenset[str]:
        """The names of the parameters that have the classes as an axis: the last layer.

        In general those that would have another shape if there were another number of classes.
        """
        with torch.device("meta"):
            other = type(self)(self.settings.model_copy(update={"num_classes": self.settings.num_classes + 1}))
        shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
        return frozenset(name for name, parameter in self.named_parameters() if parameter.shape != shapes[name])

    def with_head(self, num_classes: int, *, seed: int = 0, **fields: Any) -> Self:
        """A network of its own for so many classes: its head is drawn from `seed`, all else copied.

        `fields` are settings that change no weight's shape, such as resolutions. Raises `UserError` where it cannot be.
        """
        given = {**self.settings.model_dump(), "num_classes": num_classes, **fields}
        settings = self.settings_type.parse(given, where=f"the settings of {self.family}")
        return self._copied_into(type(self)(settings, seed=seed))

    def _copied_into(self, fresh: Self) -> Self:
        """Another network of the same layers, with everything of this one but the head."""
        state, head = fresh.state_dict(), self.head()
        own = {name: t for name, t in self.state_dict().items() if name not in head and t.shape == state[name].shape}
        fresh.load_state_dict(state | own)
        return fresh.train(self.training)

    def bind(self, arch: Architecture) -> "BoundSubnet":
        """A module called `model(x)` that shares this network's weights."""
        return BoundSubnet(self, arch)

    def extract(self, arch: Architecture) -> nn.Module:
        """A plain network of its own with copies of the weights, in the supernet's mode and device.

        In evaluation mode it computes what `net(x, arch)` does, bit for bit on the CPU in float32. Its attribute `spec`
        is `describe(arch)`.
        """
        with torch.device("meta"):  # initialising would draw from the global generator
            plain = self.describe(arch).build()
        device = next(self.parameters()).device
        state = {
            name: torch.zeros((), dtype=torch.long, device=device)
            for name in plain.state_dict()
            if name.endswith("num_batches_tracked")
        }
        for name, tensor in self.slices(arch).items():
            state[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        plain.load_state_dict(state, assign=True)
        return plain.train(self.training)


class BoundSubnet(nn.Module):
    """A supernet with its architecture filled in; the weights are the supernet's own."""

    def __init__(self, supernet: Supernet, arch: Architecture) -> None:
        super().__init__()
        self.supernet = supernet
        self.arch = supernet.space.check(arch)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, classes]."""
        logits: Tensor = self.supernet(x_BCHW, self.arch)
        return logits
