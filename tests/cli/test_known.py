"""What options name without importing its owners is what the owners have."""

from collections.abc import Iterable

import pytest

from trainonce import data, export, latency, models
from trainonce.cli import known
from trainonce.data import decode, formats
from trainonce.evaluation import population
from trainonce.lab.measures import forgetting
from trainonce.lab.studies import built_in, study
from trainonce.latency import table
from trainonce.models import ofa
from trainonce.parallel import fan_out
from trainonce.pipeline import devices
from trainonce.search import algorithm, resources

OWNERS: dict[str, object] = {
    "DATA_SETS": data.DATASET_NAMES,
    "FILES": formats.FILES,
    "PICTURES": decode.KINDS,
    "FAMILIES": {name: tuple(family.settings_type.geometries) for name, family in models.FAMILIES.items()},
    "DEFAULT_FAMILY": models.MobileNetV3.family,
    "OFA_NETWORKS": (*ofa.OFA_NETWORKS, ofa.OFA_RESNET),
    "OFA_RESOLUTIONS": ofa.OFA_RESOLUTIONS,
    "STUDIES": built_in.STUDIES,
    "RESOURCES": resources.NAMES,
    "TARGETS": export.TARGETS,
    "RUNTIMES": latency.RUNTIMES,
    "DEVICES": devices.BUILT_IN,
    "LOCAL": fan_out.LOCAL,
    "MOST_PER_BUCKET": population.MOST_PER_BUCKET,
    "MOST_PROBES": forgetting.MOST_PROBES,
    "MOST_SCORES": algorithm.MOST_SCORES,
    "MOST_THREADS": table.MOST_THREADS,
    "MOST_BATCH": table.MOST_BATCH,
    "LONGEST_SCALE": study.LONGEST_SCALE,
    "MOST_SEEDS": study.MOST_SEEDS,
}


def test_every_name_has_an_owner() -> None:
    assert {name for name in vars(known) if name.isupper()} == set(OWNERS)


@pytest.mark.parametrize("name", OWNERS)
def test_it_is_what_its_owner_says(name: str) -> None:
    owned = OWNERS[name]
    names = isinstance(owned, Iterable) and not isinstance(owned, str)
    assert vars(known)[name] == (owned if name == "FAMILIES" else tuple(owned) if names else owned)  # type: ignore[arg-type]
