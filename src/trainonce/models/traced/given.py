"""Networks that a person names: of timm, of torchvision, or what a function of their own gives."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from trainonce.data.picture import Interpolation
from trainonce.errors import UserError
from trainonce.extras import try_import
from trainonce.models.weights import check_weights, is_counter, read_weights
from trainonce.names import import_named

LIBRARIES = ("timm", "torchvision")
"""Libraries whose networks are named LIBRARY:NAME."""


@dataclass(frozen=True, kw_only=True)
class GivenNetwork:
    """A network that was named, and what its own configuration says of the images that it is for."""

    name: str
    network: nn.Module
    trained: bool
    """Whether it has weights that were trained: those of a file, or a function's own."""
    image_size: int | None = None
    """Side in pixels; None where the configuration does not say."""
    mean: tuple[float, ...] | None = None
    """Of pixels in 0..1, one for each channel."""
    std: tuple[float, ...] | None = None
    """Of pixels in 0..1, one for each channel."""
    interpolation: Interpolation | None = None
    """How its images were resized; None where the configuration does not say, or names a way that there is not."""


def network_named(name: str, weights: str | Path | None = None, *, seed: int = 0) -> GivenNetwork:
    """The network of that name, with the weights of a file if one is given (see `read_weights`).

    It is timm:NAME, torchvision:NAME, or a function that takes nothing and gives the network: package.module:function.
    Networks of the libraries have weights drawn from `seed` without a file: nothing is fetched. Of a function's network
    its attribute `pretrained_cfg`, if it has one, says what timm's say: input_size, mean, std, interpolation.
    Raises `UserError` for a name that is none, an extra that is missing, and weights that do not fit.
    """
    library, _, rest = name.partition(":")
    given = None if weights is None else read_weights(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made, configuration = _made(library, rest, name, None)
        if given is not None and library in LIBRARIES and (classes := _other_classes(made, given)) is not None:
            made, configuration = _made(library, rest, name, classes)
    if given is not None:
        _load(made, given, f"{weights} is not a {name}")
    return GivenNetwork(
        name=name, network=made, trained=weights is not None or library not in LIBRARIES, **configuration
    )


def _made(library: str, rest: str, name: str, classes: int | None) -> tuple[nn.Module, dict[str, Any]]:
    fields = {} if classes is None else {"num_classes": classes}
    if library == "timm":
        timm = _library("timm", name)
        _refuse_unknown(rest, timm.list_models(), library)
        made = timm.create_model(rest, pretrained=False, **fields)
        return made, _of_timm(made.pretrained_cfg)
    if library == "torchvision":
        models = _library("torchvision.models", name)
        _refuse_unknown(rest, models.list_models(module=models), library)
        made = models.get_model(rest, weights=None, **fields)
        return made, _of_torchvision(models.get_model_weights(rest).DEFAULT.transforms())
    function = import_named(name, "network", (f"{library}:NAME" for library in LIBRARIES))
    made = function() if callable(function) and not isinstance(function, nn.Module) else function
    if not isinstance(made, nn.Module):
        raise UserError(f"{name} gives no torch.nn.Module but a {type(made).__name__}")
    configuration: object = made.pretrained_cfg if hasattr(made, "pretrained_cfg") else None
    return made, _of_timm(configuration) if isinstance(configuration, Mapping) else {}


def _library(module: str, name: str) -> Any:
    library = module.partition(".")[0]
    with try_import(f"--model {name}", library, told=True):
        try:
            return importlib.import_module(module)
        except RuntimeError as error:  # its compiled operators are of another torch
            raise UserError(f"{library} does not fit the torch that is installed: {str(error)[:200]}") from error


def _refuse_unknown(name: str, known: Iterable[str], library: str) -> None:
    known = list(known)
    if name.partition(".")[0] not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"{library} has no network {name!r}{hint}")


def _of_timm(configuration: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {key: tuple(configuration[key]) for key in ("mean", "std") if configuration.get(key)}
    size, how = configuration.get("input_size"), configuration.get("interpolation")
    found |= {"interpolation": how} if how in get_args(Interpolation) else {}
    return found | ({"image_size": int(size[-1])} if size else {})


def _of_torchvision(transforms: Any) -> dict[str, Any]:
    return {
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "image_size": int(transforms.crop_size[0]),
        **({"interpolation": how} if (how := transforms.interpolation.value) in get_args(Interpolation) else {}),
    }


def _other_classes(network: nn.Module, given: Mapping[str, Tensor]) -> int | None:
    """How many classes weights tell apart, where that is another number than the network's."""
    own, last = network.state_dict(), list(network.state_dict())[-1]
    return len(given[last]) if last in given and given[last].shape != own[last].shape and given[last].ndim else None


def _load(network: nn.Module, given: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a network, as float32. What counts a norm's batches may be missing."""
    own = network.state_dict()
    wanted = {name: tensor for name, tensor in own.items() if not is_counter(name)}
    check_weights(wanted, {name: tensor for name, tensor in given.items() if not is_counter(name)}, where)
    network.load_state_dict(own | {name: given[name].to(own[name].dtype) for name in own if name in given})
