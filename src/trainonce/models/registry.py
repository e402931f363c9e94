"""Families by name: those of trainonce, those that a package offers, and a person's own as `package.module:Class`."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from trainonce.errors import UserError
from trainonce.models.supernet import Supernet
from trainonce.names import import_named

FAMILIES: dict[str, type[Supernet]] = {}
"""The families that are registered, by name."""
OF_NETWORKS = {"traced": "trainonce.models.traced:Traced", "ofa_resnet": "trainonce.models.ofa_resnet:OFAResNet"}
"""Families that are made of a person's own network, not from settings: imported where a run names them."""
ENTRY_POINTS = "trainonce.families"
"""The group of entry points by which an installed package offers families."""

F = TypeVar("F", bound=type[Supernet])


def register(family: F) -> F:
    """Make a family known by its `family`, as a decorator of its class. Raises `UserError` where the name is taken."""
    if FAMILIES.setdefault(family.family, family) is not family:
        raise UserError(f"there is a family {family.family!r} already: {FAMILIES[family.family].__qualname__}")
    return family


def family_named(name: str, *, beside: str | Path | None = None) -> type[Supernet]:
    """The family of that name, or `package.module:Class`, which is imported (not from inside the directory `beside`).

    Raises `UserError` that names the valid families.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    name = OF_NETWORKS.get(name, name)
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    others = [*FAMILIES, *offered]
    found = offered[name].load() if name in offered else import_named(name, "family", others, beside=beside)
    if not (isinstance(found, type) and issubclass(found, Supernet)):
        raise UserError(f"{name} is not a family: it is not a subclass of trainonce.Supernet")
    return found


def build(
    family: str,
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
    where: str = "the settings",
    beside: str | Path | None = None,
) -> Supernet:
    """The supernet of a family with these settings, initialised from `seed`.

    Raises `UserError` that names the valid families, or the key of the settings that is wrong.
    """
    chosen = family_named(family, beside=beside)
    return chosen(chosen.settings_type.parse(settings, where=where), seed=seed)
