"""Measuring a machine that has nothing of trainonce: a folder to take there, and the table of what comes back.

The folder holds the networks without their weights, which are made there at random, since time does not follow from
them; and the program that `build_table` itself measures with, which needs a runtime and numpy alone.
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainonce.errors import RunError, UserError
from trainonce.latency import bench
from trainonce.latency.bench import HOLES, MODELS, PLAN, RESULT, RESULT_FORMAT, WORK_FORMAT, hash_of
from trainonce.latency.build import BuildSettings, Item, make_plan, modules_of, table_of, work_of
from trainonce.latency.log import MeasuredLine
from trainonce.latency.runtimes import ModelFiles, made_with, model_files
from trainonce.latency.table import LatencyTable
from trainonce.models import Supernet
from trainonce.settings import Settings

PROGRAM, README = "measure.py", "README.txt"
FEWEST_BYTES = 128
"""Smaller weights stay in the files."""
TEXT = """How long these networks take on this machine, with {runtime} and {threads} thread{s}.

    python measure.py      # Python 3.9 or later, with the packages {package} and numpy

Let the machine do nothing else meanwhile. If it is stopped, the same goes on. It writes result.json: take that back,
and there `trainonce latency unpack result.json RUN` makes the table.
"""


class Result(Settings):
    """What the program writes."""

    format: Literal["trainonce-latency-result-1"]
    plan: str
    """The hash of all that was measured, in its order."""
    settings: BuildSettings
    machine: dict[str, str | int | None]
    versions: dict[str, str]
    made: str
    lines: tuple[MeasuredLine, ...] = Field(min_length=1)


def pack_bench(
    net: Supernet,
    settings: BuildSettings,
    out: str | Path,
    *,
    on_progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> int:
    """Write a folder whose program measures another machine for the subnets of a supernet; the bytes that it takes.

    There: a runtime, numpy and Python 3.9. Raises `UserError` for an unknown runtime, torch (which has no files), a
    missing extra and a folder that is there and not empty, `RunError` where the disk refuses.
    """
    out, plan = Path(out), make_plan(net, settings)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and not empty: name another folder")
    work = work_of(plan)
    versions = made_with(settings.runtime)
    total = sum(map(len, (*work.parts, work.anchors, *work.groups)))
    names: dict[str, list[str]] = {}

    def packed(item: Item) -> list[str]:
        on_progress(len(names), total, "writing networks")
        key = repr(item)
        if key not in names:
            made = [
                (f"{len(names):04}-{number}", *pair) for number, pair in enumerate(modules_of(item, settings.batch))
            ]
            for name, module, shape in made:
                _add(models, name, model_files(settings.runtime, module, shape), shape)
            names[key] = [name for name, *_ in made]
        return names[key]

    try:
        out.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(out / MODELS, "w", zipfile.ZIP_DEFLATED) as models:
            values: dict[str, Any] = {
                "format": WORK_FORMAT,
                "runtime": settings.runtime,
                "plan": plan.identity,
                "settings": settings.model_dump(),
                "versions": versions,
                "parts": [[packed(item) for item in chunk] for chunk in work.parts],
                "anchors": [packed(item) for item in work.anchors],
                "groups": [[packed(item) for item in group] for group in work.groups],
            }
        (out / PLAN).write_text(json.dumps({**values, "sha256": hash_of(values)}), encoding="utf-8")
        (out / PROGRAM).write_bytes(Path(bench.__file__).read_bytes())
        plural = "s" if settings.threads > 1 else ""
        package = bench.RUNTIMES[settings.runtime][1]
        text = TEXT.format(runtime=settings.runtime, threads=settings.threads, s=plural, package=package)
        (out / README).write_text(text, encoding="utf-8")
        return sum(path.stat().st_size for path in out.iterdir())
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}") from error


def _add(models: zipfile.ZipFile, name: str, made: ModelFiles, shape: Sequence[int]) -> None:
    """Add a model's files without their weights, and where those belong."""
    about: dict[str, Any] = {"shape": list(shape), "files": {}}
    for file, content in made.files.items():
        template, about["files"][file] = hollowed(content, made.weights)
        models.writestr(f"{name}/{file}", template)
    models.writestr(f"{name}/{HOLES}", json.dumps(about))


def hollowed(content: bytes, weights: Sequence[NDArray[Any]]) -> tuple[bytes, list[list[Any]]]:
    """A file without those weights that are large and stand in it; and the holes, for `bench.filled`."""
    found: dict[int, NDArray[Any]] = {}
    for value in weights:
        if value.nbytes >= FEWEST_BYTES and value.dtype in (np.float32, np.int8) and value.any():
            text = np.ascontiguousarray(value).tobytes()
            place = content.find(text)
            while place in found:
                place = content.find(text, place + len(text))
            if place >= 0:
                found[place] = value
    pieces, holes, at, size = [], list[list[Any]](), 0, 0
    for place, value in sorted(found.items()):
        pieces.append(content[at:place])
        size += len(pieces[-1])
        largest = float(np.abs(value.astype(np.float64)).max())
        holes.append([size, value.size, str(value.dtype), largest])
        at = place + value.nbytes
    return b"".join([*pieces, content[at:]]), holes


def unpack_table(result: str | Path, net: Supernet) -> LatencyTable:
    """The table of what a folder's program has measured: the folder, or its result.json.

    It is what `build_table` would have made there. Raises `UserError` where it is not finished, damaged, edited,
    foreign, or of another space.
    """
    path = Path(result)
    path = path / RESULT if path.is_dir() else path
    found = _read(path)
    plan = make_plan(net, found.settings)
    if found.plan != plan.identity:
        raise UserError(f"{path} is of another space than this run's, or of another version of trainonce")
    counts = work_of(plan).counts()
    if [line.counts() for line in found.lines] != counts:
        raise UserError(f"{path} is damaged: it has other measurements than its plan names")
    return table_of(plan, found.lines, found.settings, found.machine, found.versions, made=found.made)


def _read(path: Path) -> Result:
    """What a result says. Raises `UserError` for what is none, or not as it was written."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}: {_left(path.parent)}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no result of a packed folder: {error}") from error
    form = values.get("format") if isinstance(values, dict) else None
    if form != RESULT_FORMAT:
        raise UserError(f"{path} is not a result of a folder of `trainonce latency pack`, or of another version")
    if values.pop("sha256", None) != hash_of(values):
        raise UserError(f"{path} is damaged or was edited: its content is not what its checksum was made of")
    return Result.parse(values, where=str(path))


def _left(folder: Path) -> str:
    """What a folder without a result lacks."""
    kept = folder / bench.KEPT
    if not kept.is_file():
        return "run measure.py of the packed folder on the machine to be measured"
    done = kept.read_bytes().count(b"\n") - 1
    return f"{done} measurements are in {kept.name}, run measure.py there again to go on"
