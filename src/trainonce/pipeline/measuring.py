"""What the subnets of a run do to each other, measured."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainonce.data import DataSet
from trainonce.files import write_atomic
from trainonce.lab.measures.forgetting import default_probes
from trainonce.lab.measures.measure import MeasureSettings, verdict
from trainonce.lab.measures.measure import measure as measure_probes
from trainonce.lab.measures.recorded import Interference
from trainonce.pipeline.machine import device_named, use_threads
from trainonce.records import to_json
from trainonce.run.directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured."""

    run: RunDirectory
    found: Interference
    """What RUN/interference.json holds."""
    verdict: str
    """What it says, in a sentence."""


def measure(
    run: str | Path,
    *,
    probes: int = 6,
    batches: int = 100,
    lr: float | None = None,
    calibration_images: int = 2000,
    data: DataSet | str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    on_step: Callable[[int, int], None] = lambda _step, _probes: None,
    where: str = "the options",
) -> Measured:
    """Measure what the subnets of a trained run do to each other: `trainonce measure`, whose options these are.

    It writes RUN/interference.json, also of the weights that `train` kept along the way. `on_step` is called with the
    step of each such weights, and the number of probes, before they are looked at. `where` is what refusals call the
    options. Raises `UserError` for what cannot be, `RunError` for a loss that is not finite.
    """
    use_threads(threads)
    place = RunDirectory(run)
    net, step = place.load_supernet()
    recipe = place.config().recipe
    values = {
        "batches": batches,
        "batch_size": recipe.batch_size,
        "lr": recipe.phases[-1].lr if lr is None else lr,
        "calibration_images": calibration_images,
        "seed": seed,
    }
    settings = MeasureSettings.parse(values, where=where)
    chosen = default_probes(net, probes, seed=seed)
    settled = device_named(device)
    images = place.load_data(data_dir, moved_to=data).to(settled)
    along = []
    for kept in place.kept_steps():
        on_step(kept, len(chosen))
        along.append(measure_probes(place.load_kept(kept).to(settled), images, chosen, step=kept, settings=settings))
    on_step(step, len(chosen))
    last = measure_probes(net.to(settled), images, chosen, step=step, settings=settings)
    found = last.model_copy(update={"along": along})
    write_atomic(place.interference_file, to_json(found.to_json()))
    return Measured(run=place, found=found, verdict=verdict(found))
