"""What a training begins with: images, and a supernet for them: a new one, a network of one's own, or another run's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainonce.data import DATASET_NAMES, DataSet
from trainonce.data.picture import Interpolation
from trainonce.errors import UserError
from trainonce.models import MobileNetV3, Supernet, family_named
from trainonce.models.mobilenet_v3 import SMALLEST_SIDE
from trainonce.models.weights import file_sha256
from trainonce.names import is_import_name, plural
from trainonce.run import checkpoint
from trainonce.run.directory import RunDirectory, Start


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Images and the supernet that they are to train."""

    data: DataSet
    net: Supernet
    start: Start | None = None
    """Where the network and its weights come from; None for a new one of a family."""


SMALLEST_LIGHT = 16
"""Up to so many pixels the default geometry stays `tiny`."""
Load = Callable[..., DataSet]
"""`load_dataset` with some of its keywords filled in, but not `image_size`, `mean`, `std` and `interpolation`."""


def begin(
    load: Load,
    data: DataSet | str | Path,
    *,
    image_size: int | None = None,
    model: str | None = None,
    weights: str | Path | None = None,
    stages: bool = False,
    kernels: bool = False,
    rigid: Sequence[str] = (),
    family: str | None = None,
    geometry: str | None = None,
    light: bool = False,
    width: float | None = None,
    resolutions: Sequence[int] | None = None,
    seed: int = 0,
) -> Beginning:
    """The images of `data`, and a supernet for them.

    `model` names a network to be made elastic, and `weights` a file of its weights; without a model, `weights` is a
    run's directory, whose supernet is trained further. Images get the size and normalisation that the network was
    trained with, where they are loaded here; a network for another number of classes gets a fresh head. `stages`,
    `kernels`, `rigid` (patterns of choices) and `resolutions` (the largest is the size of the images; None
    for what suits network and geometry) say what of a network is elastic. A new network for one's own images,
    and with `light` for any, is of the geometry that suits a training of minutes, unless another is named.
    Raises `UserError` for what cannot be together or cannot be made.
    """
    if model is None and (stages or kernels or rigid):
        raise UserError("--stages, --kernels and --rigid say what of a network is elastic: they go with --model")
    if model is None and weights is None:
        images = load(data, image_size=image_size)
        light = light or not published(images)
        if light and geometry is None and family is None and images.image_size > SMALLEST_LIGHT:
            geometry = "light"
        net = supernet_for(images, family=family, geometry=geometry, width=width, resolutions=resolutions, seed=seed)
        return Beginning(data=images, net=net)
    refused = {"--family": family, "--geometry": geometry, "--width": width}
    for option, value in refused.items():
        if value is not None:
            raise UserError(f"{option} is of a new network: it cannot be given with --model or --from")
    if model is None:
        assert weights is not None
        return _of_run(load, data, Path(weights), image_size, resolutions, seed)
    fields = {"stages": stages, "kernels": kernels, "off": tuple(rigid)}
    return _of_network(load, data, model, weights, image_size, resolutions, fields, seed)


def _suiting(
    load: Load,
    data: DataSet | str | Path,
    image_size: int | None,
    own_size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    interpolation: Interpolation | None,
) -> DataSet:
    """The images as a network wants them, where they are not made already."""
    if isinstance(data, DataSet):
        return load(data, image_size=image_size)
    made = is_import_name(str(data)) and not Path(data).exists()  # by a function, in a size of its own
    if made:
        return load(data, image_size=image_size, mean=mean, std=std)
    return load(data, image_size=image_size or own_size, mean=mean, std=std, interpolation=interpolation)


def _of_network(
    load: Load,
    data: DataSet | str | Path,
    model: str,
    weights: str | Path | None,
    image_size: int | None,
    resolutions: Sequence[int] | None,
    fields: Mapping[str, Any],
    seed: int,
) -> Beginning:
    from trainonce.models.traced import elastic, network_named  # takes a while to import, and only this needs it

    given = network_named(model, weights, seed=seed)
    own_size = max(resolutions or (), default=given.image_size)
    images = _suiting(load, data, image_size, own_size, given.mean, given.std, given.interpolation)
    example_BCHW = torch.zeros(1, images.channels, images.image_size, images.image_size)
    _refuse_channels(given.mean, images, model, data)
    net = elastic(given.network, example_BCHW, resolutions=resolutions, seed=seed, **fields)
    fresh = net.settings.num_classes != images.num_classes
    start = Start(
        network=model,
        file=None if weights is None else str(Path(weights).resolve()),
        sha256=None if weights is None else file_sha256(weights),
        trained=given.trained,
        fresh_head=fresh,
    )
    net = net.with_head(images.num_classes, seed=seed) if fresh else net
    return Beginning(data=images, net=net, start=start)


def _refuse_channels(mean: tuple[float, ...] | None, images: DataSet, model: str, data: DataSet | str | Path) -> None:
    if mean is not None and len(mean) != images.channels:
        raise UserError(
            f"{model} is for images of {plural(len(mean), 'channel')}, but those of {images.name} have "
            f"{images.channels}{_grey(data, images, len(mean))}"
        )


def _grey(data: DataSet | str | Path, images: DataSet, wanted: int) -> str:
    """What to do about images of other channels, where they are read here."""
    read = not isinstance(data, DataSet) and not is_import_name(str(data))
    return ": --grey makes them grey" if read and (images.channels, wanted) == (3, 1) else ""


def _of_run(
    load: Load,
    data: DataSet | str | Path,
    path: Path,
    image_size: int | None,
    resolutions: Sequence[int] | None,
    seed: int,
) -> Beginning:
    if path.is_file():
        raise UserError(f"{path} is a file: say with --model which network its weights are of")
    run = RunDirectory(path)
    old, step = run.load_supernet()
    asked = run.config().data
    images = _suiting(load, data, image_size, old.settings.resolutions[-1], asked.mean, asked.std, asked.interpolation)
    if images.channels != old.settings.in_channels:
        raise UserError(
            f"the images of {images.name} have {plural(images.channels, 'channel')}, but {path} is for "
            f"{old.settings.in_channels}{_grey(data, images, old.settings.in_channels)}"
        )
    wanted = _in_proportion(old.settings.resolutions, images.image_size) if resolutions is None else tuple(resolutions)
    file = checkpoint.path_of(run.checkpoints, step) / "weights.safetensors"
    fresh = images.num_classes != old.settings.num_classes
    start = Start(
        network=old.family, file=str(file.resolve()), sha256=file_sha256(file), trained=True, fresh_head=fresh
    )
    net = old.with_head(images.num_classes, seed=seed, resolutions=wanted)
    if not fresh:
        net.load_state_dict(old.state_dict())
    return Beginning(data=images, net=net, start=start)


def _in_proportion(sides: Sequence[int], largest: int) -> tuple[int, ...]:
    """`largest`, and before it the sides that are to it what the others were, from `SMALLEST_SIDE` on."""
    smaller = {side * largest // sides[-1] for side in sides[:-1]}
    return (*sorted(side for side in smaller if SMALLEST_SIDE <= side < largest), largest)


def published(images: DataSet) -> bool:
    """Whether the images are a data set that is known by name, to which published settings belong."""
    return images.source.name_or_path in DATASET_NAMES


def default_recipe(begun: Beginning, for_published: str = "rss") -> str:
    """For weights that were trained before, for a new network on a published data set, and else."""
    if begun.start and begun.start.trained:
        return "transfer"
    return for_published if begun.start is None and published(begun.data) else "quick"


def supernet_for(
    data: DataSet,
    *,
    family: str | None = None,
    geometry: str | None = None,
    width: float | None = None,
    resolutions: Sequence[int] | None = None,
    seed: int = 0,
) -> Supernet:
    """An untrained supernet of a family (MobileNetV3's by default) for these images.

    Raises `UserError` for what cannot be one.
    """
    asked = family_named(family or MobileNetV3.family)
    fields: dict[str, Any] = {} if width is None else {"width_mult": width}
    if resolutions is not None:
        fields["resolutions"] = tuple(resolutions)
    settings = asked.settings_type.for_images(
        image_size=data.image_size,
        in_channels=data.channels,
        num_classes=data.num_classes,
        geometry=geometry,
        **fields,
    )
    return asked(settings, seed=seed)
