"""Weights that were trained elsewhere, as a run directory that every command but `train` takes."""

from pathlib import Path

from trainonce.data import DataSet
from trainonce.errors import RunError, UserError
from trainonce.models import Supernet
from trainonce.models.ofa import OFA_RESOLUTIONS, load_ofa
from trainonce.models.weights import file_sha256
from trainonce.recipes import RECIPES, Recipe
from trainonce.run import checkpoint
from trainonce.run.directory import Imported, RunConfig, RunDirectory, provenance

OFA_RATE = 0.03 / (0.01 / 2.7)
"""OFA's learning rates for 64 images over those of the recipe `ps`, by the phase "kernel" of OFA's training script."""


def import_ofa(
    path: str | Path, name: str, data: DataSet, run: RunDirectory, *, resolutions: tuple[int, ...] = OFA_RESOLUTIONS
) -> Supernet:
    """Make a run of a published OFA network's weights, which gets run.json and a checkpoint of step 0.

    `path`, `name`, `resolutions` and what is wrong with the file are as `load_ofa` has them. `data` are images of the
    classes that the weights tell apart, in that order; at their full size, images have the largest resolution.
    Raises `UserError` where they do not fit, or where a run is there already, and `RunError` where the disk refuses.
    """
    net = load_ofa(path, name, resolutions=resolutions)
    expected = (net.settings.num_classes, net.settings.in_channels, net.settings.resolutions[-1])
    found = (data.num_classes, data.channels, data.image_size)
    for what, want, have in zip(("classes", "channels", "pixels a side"), expected, found, strict=True):
        if want != have:
            raise UserError(f"the images of {data.name} have {have} {what}, but {name} in {path} has {want}")
    imported = Imported(name=name, file=str(Path(path).resolve()), sha256=file_sha256(path))
    recipe = _published(name)
    config = RunConfig(
        data=data.source,
        data_fingerprint=data.fingerprint(),
        preparation=data.varied_by(recipe).preparation,
        family=net.family,
        model=net.settings.model_dump(mode="json"),
        recipe=recipe,
        imported=imported,
        provenance=provenance("cpu") | {"imported": imported.model_dump()},
    )
    with run.lock():
        run.create(config)
        try:
            state = {"step": 0, "identity": config.identity()}
            checkpoint.save(run.checkpoints, 0, {"weights": net.state_dict()}, state)
        except RunError:
            run.config_file.unlink()  # so that it can be done again
            raise
    return net


def _published(name: str) -> Recipe:
    """How OFA says it trained its networks: progressive shrinking, for as long as the recipe `ps` by default."""
    shrinking = RECIPES["ps"]
    phases = tuple(
        phase.model_copy(update={"lr": phase.lr * OFA_RATE, "label_smoothing": 0.1}) for phase in shrinking.phases
    )
    about = f"The weights of {name}, imported; OFA trained them so, on ImageNet. Nothing was trained here."
    return shrinking.model_copy(update={"name": "imported", "about": about, "phases": phases})
