"""A network for each of several devices, from one run: searched for, taken out, fine-tuned, exported, certified.

All searches come first: what one scores may suit another device better than what its own found. OUT/DEVICE is the
subnet, OUT/DEVICE/export/TARGET its file and certificate, and OUT/ship.json says what each device got. A device that is
done is not done again; scores are recorded in the run and never made twice; so the same call goes on.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from trainonce.data import DataSet
from trainonce.errors import NotFiniteError, RunError, UserError
from trainonce.evaluation.evaluator import Score, refuse_empty, wilson
from trainonce.export.certificate import FILE as CERTIFICATE
from trainonce.export.certificate import Certificate
from trainonce.export.extras import require_extras
from trainonce.export.integrity import check_file
from trainonce.files import locked
from trainonce.latency import LatencyTable
from trainonce.models import Supernet
from trainonce.nn.kinds import spec_of
from trainonce.pipeline.devices import Device, load_devices
from trainonce.pipeline.exporting import Exported, export, target_named
from trainonce.pipeline.extracting import Extracted, extract
from trainonce.pipeline.finetuning import finetune
from trainonce.pipeline.machine import use_threads
from trainonce.pipeline.searching import Amount, Searched, SearchProgress, problem_of, search
from trainonce.pipeline.shipped import ShipOptions, Shipped, record, recorded
from trainonce.recipes import Reached
from trainonce.run.directory import RunDirectory
from trainonce.search import feasible_subnet
from trainonce.search.footprint import file_bytes, ram_bytes
from trainonce.search.resources import latency_of, quantity, table_at, unsuited
from trainonce.subnets import read_subnet
from trainonce.subnets.description import RecordedScore
from trainonce.subnets.finetune import Finetuned

Found = TypeVar("Found")

TRIES = 3
"""How often a smaller subnet is looked for where the file turns out larger than was predicted."""


class ShipProgress(NamedTuple):
    """Where the work for a device stands."""

    device: Device
    stage: str
    """What is being done, in words."""
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What became of the devices."""

    out: Path
    done: tuple[Shipped, ...]
    """In the order in which the devices were named."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why, of each device that failed beside others."""
    seconds: float
    """What it took; after a dry run, about what searching would take."""
    finished: bool
    """Whether all were tried: not where `should_stop` said so, nor after a dry run."""


class _StoppedShippingError(Exception):
    """It was asked to stop."""


def ship(
    run: str | Path,
    devices: Sequence[str | Path | Device],
    *,
    scores: int = 40,
    finetune_epochs: int = 0,
    images: int = 64,
    calibration_images: int | None = None,
    out: str | Path | None = None,
    data: DataSet | str | Path | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    compute: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    decode_workers: int | None = None,
    dry_run: bool = False,
    on_reached: Callable[[Reached], None] = lambda _: None,
    on_start: Callable[[], None] = lambda: None,
    on_stage: Callable[[Device, str], None] = lambda _device, _sentence: None,
    on_progress: Callable[[ShipProgress], None] = lambda _: None,
    on_shipped: Callable[[Shipped], None] = lambda _: None,
    on_failed: Callable[[Device, UserError | RunError], None] = lambda _device, _error: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Shipment:
    """Make a certified file for each device: `trainonce ship`, whose options these are.

    `devices` are built-in ones by name, TOML files, or `Device`s. For each, `scores` true scores are spent on a search
    within its limits (0: none). Then for each the best of all that is scored is taken out, fine-tuned where asked,
    exported and certified, into OUT/DEVICE; OUT is RUN/ship by default. `compute` is torch's device. `on_reached`
    is called with how far the training had come, and `should_stop` asked between stages and after each score. Raises
    `UserError` before any work for devices that cannot be; of several devices, `failed` says which failed later; of an
    only one the refusal is raised. ship.json says of both.
    """
    use_threads(threads)
    asked, place, began = load_devices(devices), RunDirectory(run), time.monotonic()
    net, step = place.load_supernet()
    loaded = place.load_data(data_dir, moved_to=data, workers=decode_workers)
    refuse_empty(loaded, "validate", "test")
    on_reached(place.reached(step, len(loaded.train)))
    folder = Path(out or place.path / "ship")
    work = _Work(
        run=place,
        net=net,
        data=loaded,
        out=folder,
        options=ShipOptions(
            step=step,
            weights_sha256=_weights_sha256(net),
            scores=scores,
            finetune_epochs=finetune_epochs,
            seed=seed,
            calibration_images=calibration_images,
            images=images,
        ),
        compute=compute,
        workers=workers,
        on_stage=on_stage,
        on_progress=on_progress,
        should_stop=should_stop,
    )
    done: dict[str, Shipped] = {}
    failed: dict[str, str] = {}

    def each(devices: Sequence[Device], stage: Callable[[Device], Found]) -> Iterator[tuple[Device, Found]]:
        """What a stage gives for each device that it does not fail for."""
        for device in devices:
            try:
                found = stage(device)
            except (UserError, RunError) as error:
                failed[device.name] = str(error)
                if len(asked) == 1:
                    raise
                on_failed(device, error)
            else:
                yield device, found

    fitting = [device for device, _ in each(asked, work.check)]
    if dry_run:
        seconds = sum(work.search_seconds(device) for device in fitting)
        return Shipment(out=folder, done=(), failed=failed, seconds=seconds, finished=False)
    finished = True
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"another process is working in {folder}"):
        on_start()
        try:
            searched = {device.name: seconds for device, seconds in each(fitting, work.search)}
            found = [device for device in fitting if device.name in searched]
            for device, made in each(found, lambda device: work.ship(device, searched[device.name])):
                done[device.name] = made
                on_shipped(made)
                record(place, folder, done, failed)
        except _StoppedShippingError:
            finished = False
        finally:
            record(place, folder, done, failed)
    return Shipment(
        out=folder,
        done=tuple(done[device.name] for device in asked if device.name in done),
        failed=failed,
        seconds=time.monotonic() - began,
        finished=finished,
    )


class _Beyond(NamedTuple):
    """A limit that what was made does not keep."""

    resource: str
    sentence: str
    instead: float
    """The prediction, in bytes, that is to be kept instead: smaller by as much as what was measured is beyond."""


def _beyond(device: Device, made: Shipped) -> list[_Beyond]:
    """Which limits on flash and RAM are not kept by the file, and by its runtime's plan where there is one."""
    found = []
    for resource, what, limit, measured, predicted in (
        ("size", "its file has", device.max_flash, made.file_bytes, made.predicted_bytes),
        ("memory", "its runtime plans", device.max_ram, made.ram_bytes, made.predicted_ram_bytes),
    ):
        most = float("inf") if limit is None else quantity(resource, str(limit))
        if measured > most:
            sentence = f"{what} {measured:,} bytes where {predicted:,} were predicted, and {most:,.0f} may be"
            found.append(_Beyond(resource, sentence, 0.99 * most * predicted / measured))
    return found


def _weights_sha256(net: Supernet) -> str:
    """Of every tensor's name and values."""
    found = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _limits(device: Device, most: Mapping[str, Amount]) -> dict[str, Any]:
    """A budget as `search` and `extract` take it."""
    names = ("macs", "params", "latency", "memory", "size")
    return {f"max_{name}": most.get(name) for name in names} | {"target": device.target, "latency": device.latency}


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What the devices share."""

    run: RunDirectory
    net: Supernet
    data: DataSet
    out: Path
    options: ShipOptions
    compute: str
    workers: int | None
    on_stage: Callable[[Device, str], None]
    on_progress: Callable[[ShipProgress], None]
    should_stop: Callable[[], bool]

    def options_of(self, device: Device) -> ShipOptions:
        """The options, with the device's own epochs of fine-tuning and its latency table."""
        epochs, table = device.finetune_epochs, self._table(device)
        own: dict[str, Any] = {} if epochs is None else {"finetune_epochs": epochs}
        own |= {} if table is None else {"latency_sha256": LatencyTable.read(table).sha256}
        return self.options.model_copy(update=own)

    def check(self, device: Device) -> None:
        """Raise `UserError` where no subnet keeps the limits, or where its target's extra is missing."""
        require_extras(target_named(device.target))
        most, table = device.budget(), self._table(device)
        if other := unsuited(table, device.target):
            self.on_stage(device, other)
        feasible_subnet(problem_of(self.net, most, table, target=device.target))

    def _table(self, device: Device) -> Path | None:
        """The latency table that says what the device's file takes; None where that is measured.

        One that its file names, or that its limit needs, or the only one in RUN/latency if it is of one image, of this
        supernet and of a runtime for the device's target. Raises `UserError` where one that is needed cannot be used.
        """
        limited = "latency" in device.budget()
        table = table_at(self.run, device.latency, needed=limited, by="with latency in its file")
        if table is None:
            return None
        chosen = limited or device.latency is not None
        try:
            latency_of(self.net, table)
        except UserError:
            if chosen:
                raise
            return None
        return table if chosen or unsuited(table, device.target) is None else None

    def search_seconds(self, device: Device) -> float:
        """About how long its search takes, were none of it recorded."""
        if self._done(device) is not None or not self.options.scores:
            return 0.0
        return self._search(device, device.budget(), dry_run=True).seconds

    def search(self, device: Device) -> float:
        """Search for a device that does not have its network yet; the seconds that it took."""
        began = time.monotonic()
        if self._done(device) is None:
            self._find(device, device.budget())
        return time.monotonic() - began

    def ship(self, device: Device, searched: float) -> Shipped:
        """What a device gets, made or found, after so many seconds of searching. Raises as the stages do."""
        known = self._done(device)
        if known is not None:
            return known
        began, most = time.monotonic() - searched, device.budget()
        made = self._made(device, most, began)
        for _ in range(TRIES - 1):
            beyond = _beyond(device, made)
            if not beyond:
                break
            told = " and ".join(one.sentence for one in beyond)
            self._stage(device, f"{told}: looking for a smaller network")
            most = most | {one.resource: f"{one.instead:.0f}B" for one in beyond}
            try:
                self._find(device, most)
                made = self._made(device, most, began)
            except UserError as error:
                raise UserError(f"{told}; of networks that are as much smaller: {error}") from error
        if beyond := _beyond(device, made):
            raise RunError(" and ".join(one.sentence for one in beyond))
        return made

    def _done(self, device: Device) -> Shipped | None:
        """What the device has already, if it is what would be made now and its files are whole."""
        asked, options = device.model_dump(mode="json"), self.options_of(device)
        for known in recorded(self.out):
            if known.device == asked and known.options == options and self._whole(known):
                return known
        return None

    def _whole(self, known: Shipped) -> bool:
        """Whether the files and the certificate are what they were."""
        try:
            description = read_subnet(self.out / known.subnet)[1]
            certificate = Certificate.read_file(self.out / known.certificate)
            checked = check_file(self.out / known.file)
        except UserError:
            return False
        same = certificate.architecture == description.architecture == known.arch
        return same and certificate.passed is not False and checked.state == "whole"

    def _search(self, device: Device, most: Mapping[str, Amount], *, dry_run: bool = False) -> Searched:
        """Search within a budget. Random search has no part in it: what it would find is not handed over alone."""

        def note(at: SearchProgress) -> None:
            self.on_progress(ShipProgress(device, "subnets scored", at.done, at.total))

        return search(
            self.run.path,
            **_limits(device, most),
            scores=self.options.scores,
            control=False,
            calibration_images=self.options.calibration_images,
            data=self.data,
            seed=self.options.seed,
            device=self.compute,
            workers=self.workers,
            dry_run=dry_run,
            on_progress=note,
            should_stop=self.should_stop,
        )

    def _find(self, device: Device, most: Mapping[str, Amount]) -> None:
        """Search within a budget, where scores are to be spent."""
        if self.options.scores:
            self._stage(device, f"searching, {self.options.scores} scores")
            if not self._search(device, most).finished:
                raise _StoppedShippingError

    def _made(self, device: Device, most: Mapping[str, Amount], began: float) -> Shipped:
        """All stages for a device after the search: the best within a budget of all that is scored."""
        self._stage(device, "taking out the best subnet within the limits")
        epochs, place = self.options_of(device).finetune_epochs, self.out / device.name
        take_out = partial(extract, self.run.path, **_limits(device, most), data=self.data, device=self.compute)
        taken = take_out(out=self.run.subnets / f"{device.name}-untuned" if epochs else place)
        score = taken.scores["validate"]
        if epochs:
            try:
                tuned = self._finetuned(device, taken.path, place, epochs)
                why = "" if tuned.better else "no epoch has less loss on validate"
            except NotFiniteError:
                why = "its loss grew beyond all numbers"
            if why:
                self._stage(device, f"{why}: it stays as it was")
                take_out(out=place)
            else:
                score = tuned.after
        made = export(
            place,
            device.target,
            run=self.run.path,
            images=self.options.images,
            max_loss=device.max_loss,
            data=self.data,
            on_part=lambda sentence: self._stage(device, sentence),
        ).done[0]
        return self._shipped(device, taken, made, score, time.monotonic() - began)

    def _finetuned(self, device: Device, subnet: Path, place: Path, epochs: int) -> Finetuned:
        """Train the subnet further, into `place`."""
        self._stage(device, f"fine-tuning, {epochs} epochs")
        tuned = finetune(
            subnet,
            epochs,
            run=self.run.path,
            out=place,
            seed=self.options.seed,
            data=self.data,
            device=self.compute,
            on_progress=lambda at: self.on_progress(ShipProgress(device, "steps of fine-tuning", at.step, at.steps)),
            should_stop=self.should_stop,
        )
        if tuned.result is None:
            raise _StoppedShippingError
        return tuned.result

    def _stage(self, device: Device, sentence: str) -> None:
        """Tell of the next stage, unless it is to stop before it."""
        if self.should_stop():
            raise _StoppedShippingError
        self.on_stage(device, sentence)

    def _shipped(self, device: Device, taken: Extracted, made: Exported, score: Score, seconds: float) -> Shipped:
        certificate, details = made.certificate, made.certificate.details
        spec = spec_of(read_subnet(self.out / device.name)[0])
        counted = {"numbers": device.numbers, "target": device.target}
        ram = ram_bytes(spec, **counted)
        ran = certificate.passed is not None
        top1 = certificate.top1["exported" if ran else "extracted"]
        if isinstance(top1, str):
            raise RunError(f"the file's top-1 on the test split is {top1}")
        table = self._table(device)
        values = {
            "device": device.model_dump(mode="json"),
            "options": self.options_of(device).to_json(),
            "subnet": device.name,
            "arch": str(taken.arch),
            "id": taken.arch.id,
            "macs": taken.cost.macs,
            "params": taken.cost.params,
            "validate_score": RecordedScore.of(score).to_json(),
            "test_top1": top1,
            "test_interval": list(wilson(top1, certificate.images.test)),
            "test_images": certificate.images.test,
            "file": str(made.file.relative_to(self.out)),
            "file_bytes": details.flash_bytes or sum(file.bytes for file in certificate.files.values()),
            "predicted_bytes": file_bytes(spec, **counted),
            "ram_bytes": details.arena_bytes or ram,
            "predicted_ram_bytes": ram,
            "ram_measured": details.arena_bytes is not None,
            "latency_ms": certificate.latency_ms.exported
            if table is None
            else LatencyTable.read(table).predict_ms(spec),
            "latency_table": None if table is None else str(table),
            "quiet": certificate.latency_ms.quiet if table is None else None,
            "certificate": str((made.place / CERTIFICATE).relative_to(self.out)),
            "ran": ran,
            "verdict": certificate.verdict,
            "seconds": seconds,
        }
        return Shipped.read(values, where=f"what was made for {device.name}")
