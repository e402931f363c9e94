"""Measuring a machine: files opened by their runtimes, timed in turns, a group of them at a time beside anchors.

This file needs nothing but numpy, a runtime and Python 3.9, and no part of trainonce: `trainonce latency pack` copies
it into a folder, where it is the program that measures another machine, in the same way:

    python measure.py        # beside plan.json and models.zip; writes result.json

What it has measured it keeps in measured.jsonl, and goes on from there when it is started again.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Clock = Callable[[], float]
"""Gives a moment in seconds."""
Call = Callable[[], object]
"""Runs something once."""
Timer = Callable[..., "list[float]"]
"""`time_ms`, or what stands in for it."""
Files = Mapping[str, bytes]
"""The files of one model by their names."""
Shape = Sequence[int]
Open = Callable[[Files, Shape], Call]
"""Makes of a model, and the shape of its one float32 input, something that runs it once."""
Line = dict[str, Any]
OnProgress = Callable[[int, int, str], None]

WORK_FORMAT, RESULT_FORMAT = "trainonce-latency-work-1", "trainonce-latency-result-1"
PLAN, MODELS, HOLES, KEPT, RESULT = "plan.json", "models.zip", "holes.json", "measured.jsonl", "result.json"
ONNX, TFLITE, PARAM, BIN = "model.onnx", "model.tflite", "model.ncnn.param", "model.ncnn.bin"


# Timing


def time_ms(
    calls: Sequence[Call],
    *,
    rounds: int,
    repeats: int = 3,
    warm_up: int = 2,
    clock: Clock = time.perf_counter,
) -> list[float]:
    """The median milliseconds of each call, over rounds in which every call has its turn.

    In its turn a call runs once untimed, which brings its weights back into the caches, and then `repeats` times, of
    which the fastest counts: the others were disturbed. Calls take turns so that slow changes of the machine hit them
    all alike, and what a round was slower than the others as a whole is taken out before the median. `warm_up` rounds
    before do not count. Rubbish is not collected meanwhile.
    """
    assert rounds >= 1
    assert repeats >= 1
    if not calls:
        return []
    took = np.zeros((rounds, len(calls)))
    with uncollected():
        for turn in range(-warm_up, rounds):
            for place in range(len(calls)):
                index = (place + turn) % len(calls)  # each round begins with another one
                calls[index]()
                fastest = min(_seconds(calls[index], clock) for _ in range(repeats))
                if turn >= 0:
                    took[turn, index] = 1e3 * fastest
    return [float(ms) for ms in _without_rounds(took)]


def _without_rounds(took: Any) -> Any:
    """The medians of the columns, each row divided before by how much slower it was than the others.

    A row's slowness is the median of its ratios to the columns' medians; three passes, as in Tukey's median polish.
    """
    took = np.maximum(took, 1e-9)  # a clock may be too coarse for a call
    middle = np.median(took, axis=0)
    for _ in range(3):
        slowness = np.median(took / middle, axis=1, keepdims=True)
        middle = np.median(took / slowness, axis=0)
    return middle


def _seconds(call: Call, clock: Clock) -> float:
    began = clock()
    call()
    return clock() - began


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, rubbish is not collected."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Inside, this thread and those it starts stay on as many cores as there are `threads`.

    They are the last of those allowed, since interrupts tend to land on the first. Where the system has no such
    thing, or there are not more cores than threads, threads go where they like.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(allowed) > threads:
        os.sched_setaffinity(0, allowed[-threads:])
    try:
        yield
    finally:
        if len(allowed) > threads:
            os.sched_setaffinity(0, allowed)


QUIET = 1.1
"""How many times its fastest pace a machine's slowest may be before its figures are said to be of a busy one."""
TURNS = 5
"""How many times the pace is looked at while a few calls are timed."""


def was_quiet(drift: Sequence[float]) -> bool:
    """Whether a machine of this slowest and fastest pace was quiet, by `QUIET`."""
    slow, fast = drift
    return slow <= QUIET * fast


def time_and_drift(calls: Sequence[Call], *, rounds: int, timer: Timer = time_ms) -> tuple[list[float], list[float]]:
    """The milliseconds of a few calls, and the machine's slowest and fastest pace meanwhile, by these calls themselves.

    There are `TURNS` measurements, of a part of the `rounds` each; what one is slower as a whole is the machine's pace,
    as between the groups of a table, and is taken out before their median.
    """
    groups = []
    for turn in range(TURNS):
        times = timer(calls, rounds=max(1, rounds // TURNS), warm_up=0 if turn else 2)
        groups.append({"ms": times, "anchors": times})
    measured, drift = without_drift(groups)
    return np.median(measured.reshape(TURNS, len(calls)), axis=0).tolist(), list(drift)


def without_drift(groups: Sequence[Mapping[str, Any]]) -> tuple[Any, tuple[float, float]]:
    """The networks' milliseconds at the machine's usual pace, and its slowest and fastest pace as factors of that.

    A group's pace is what its anchors took, as a part of what they took in the middle of all groups.
    """
    measured = np.array([ms for group in groups for ms in group["ms"]])
    anchors = np.array([group["anchors"] for group in groups])
    paces = np.median(anchors / np.median(anchors, axis=0), axis=1)
    return measured / np.repeat(paces, [len(group["ms"]) for group in groups]), (float(paces.max()), float(paces.min()))


# What is measured


class BenchWork(NamedTuple):
    """What is to be measured; what `prepare` of a `Bench` makes calls of stands for each part and network."""

    parts: Sequence[Sequence[Any]]
    """Parts alone, as many at a time as are held in memory at once."""
    anchors: Sequence[Any]
    """Networks that are in every group: what they are slower in one than usual, the machine was slower."""
    groups: Sequence[Sequence[Any]]
    """Networks, as many at a time as are held in memory beside the anchors."""

    def counts(self) -> list[dict[str, int]]:
        """How many times of each kind each line of measurements has."""
        of_groups = [{"anchors": len(self.anchors), "ms": len(group)} for group in self.groups]
        return [{"parts": len(chunk)} for chunk in self.parts] + of_groups


class Bench:
    """Prepares what is to be measured and times it."""

    def __init__(self, prepare: Callable[[Any], list[Call]], rounds: int, timer: Timer = time_ms) -> None:
        self.prepare, self.rounds, self.timer = prepare, rounds, timer

    def times(self, prepared: Sequence[Sequence[Call]]) -> list[float]:
        """Milliseconds of each of those that are prepared; of several calls, of all together."""
        owners = [owner for owner, calls in enumerate(prepared) for _ in calls]
        found = [0.0] * len(prepared)
        took = self.timer([call for calls in prepared for call in calls], rounds=self.rounds)
        for place, owner in enumerate(owners):
            found[owner] += took[place]
        return found

    def parts(self, number: int, parts: Iterable[Any]) -> Line:
        """Milliseconds of parts alone."""
        return {"number": number, "parts": self.times([self.prepare(part) for part in parts])}

    def networks(self, number: int, networks: Iterable[Any], anchors: Sequence[Sequence[Call]]) -> Line:
        """Milliseconds of networks, and of the anchors that are prepared already."""
        times = self.times([*anchors, *map(self.prepare, networks)])
        return {"number": number, "anchors": times[: len(anchors)], "ms": times[len(anchors) :]}

    def measure(self, work: BenchWork, done: int, add: Callable[[Line], None], on_progress: OnProgress) -> None:
        """Measure what is left of some work, of which `done` lines are there; each line is given to `add`."""
        total, anchors = len(work.parts) + len(work.groups), []  # type: ignore[var-annotated]
        for number in range(done, total):
            alone = number < len(work.parts)
            on_progress(number, total, "the parts alone" if alone else "whole networks")
            if alone:
                add(self.parts(number, work.parts[number]))
                continue
            anchors = anchors or [self.prepare(network) for network in work.anchors]
            add(self.networks(number, work.groups[number - len(work.parts)], anchors))
        on_progress(total, total, "done")

    def seconds(self, work: BenchWork) -> float:
        """About how long all of it takes: one anchor is prepared and timed."""
        self.prepare(work.anchors[0])  # whatever is loaded at first use
        began = time.perf_counter()
        calls = self.prepare(work.anchors[0])
        to_prepare = time.perf_counter() - began
        ms = sum(time_ms(calls, rounds=3))
        networks = sum(map(len, work.groups))
        turns = (networks + len(work.anchors) * len(work.groups)) * (self.rounds + 2) * 4
        return (networks + sum(map(len, work.parts)) / 4) * to_prepare + turns * ms / 1e3


# Runtimes


def numbers(shape: Shape) -> Any:
    """An input of this shape: float32, normal, always the same."""
    return np.random.default_rng(0).standard_normal(tuple(shape), np.float32)


def _onnxruntime(threads: int) -> Open:
    import onnxruntime

    def opened(files: Files, shape: Shape) -> Call:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(files[ONNX], options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: numbers(shape)}
        return lambda: session.run(None, feed)

    return opened


def _openvino(threads: int) -> Open:
    import openvino

    core = openvino.Core()
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }

    def opened(files: Files, shape: Shape) -> Call:
        request = core.compile_model(core.read_model(files[ONNX]), "CPU", config).create_infer_request()
        x = numbers(shape)
        return lambda: request.infer([x], share_inputs=True)

    return opened


def _litert(threads: int) -> Open:
    from ai_edge_litert.interpreter import Interpreter

    def opened(files: Files, shape: Shape) -> Call:
        interpreter = Interpreter(model_content=files[TFLITE], num_threads=threads)
        interpreter.allocate_tensors()
        (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
        x = numbers(given["shape"])
        x = x if given["dtype"] == np.float32 else (40 * x).clip(-128, 127).astype(given["dtype"])

        def call() -> Any:
            interpreter.set_tensor(given["index"], x)
            interpreter.invoke()
            return interpreter.get_tensor(returned["index"])

        return call

    return opened


def _ncnn(threads: int) -> Open:
    import ncnn

    def opened(files: Files, shape: Shape) -> Call:
        net = ncnn.Net()
        net.opt.num_threads = threads
        net.opt.use_bf16_packed = net.opt.use_bf16_storage = False
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        weights = files[BIN]  # ncnn reads them where they are
        if net.load_param_mem(files[PARAM].decode()):
            raise ValueError("ncnn does not take a model")
        net.load_model_mem(weights)
        x = numbers(shape[1:])
        given, returned = net.input_names()[0], net.output_names()[0]

        def call() -> Any:
            extractor = net.create_extractor()
            extractor.input(given, ncnn.Mat(x))
            state, found = extractor.extract(returned)
            if state:
                raise ValueError(f"ncnn ends with {state}")
            return found, weights

        return call

    return opened


RUNTIMES: dict[str, tuple[Callable[[int], Open], str]] = {
    "onnxruntime": (_onnxruntime, "onnxruntime"),
    "openvino": (_openvino, "openvino"),
    "litert": (_litert, "ai-edge-litert"),
    "litert-int8": (_litert, "ai-edge-litert"),
    "ncnn": (_ncnn, "ncnn"),
}
"""By name: what opens models with a number of threads, and the package that it needs."""


def version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:  # installed without metadata
        return "unknown"


def this_machine() -> dict[str, str | int | None]:
    """The processor's name, the cores that this process may use, and the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu_name(), "cores": cores, "system": f"{platform.system()} {platform.machine()}"}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found: dict[str, str] = {}
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
        for key in ("model name", "Model", "Hardware"):  # the last two where the processor is an ARM
            if found.get(key):
                return found[key]
    return platform.processor() or platform.machine()


# The program beside plan.json and models.zip


class BenchError(Exception):
    """What is wrong, in a sentence."""


def hash_of(values: Mapping[str, Any]) -> str:
    """Of the values, not of the bytes: blanks and the order of keys do not count."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def filled(template: bytes, holes: Sequence[Sequence[Any]]) -> bytes:
    """A model with weights, random ones: time does not follow from them.

    A hole is [place in the template, how many numbers, their type, the largest]; they are even between that and its
    opposite.
    """
    pieces, at = [], 0
    for place, count, kind, largest in holes:
        values = largest * np.resize(np.roll(_even(), -(place % 65521)), count)
        pieces += [template[at:place], values.round().astype(kind).tobytes() if kind == "int8" else values.tobytes()]
        at = place
    return b"".join([*pieces, template[at:]])


_EVEN: list[Any] = []


def _even() -> Any:
    if not _EVEN:
        _EVEN.append(np.random.default_rng(0).uniform(-1, 1, 2**18).astype(np.float32))
    return _EVEN[0]


def read_plan(folder: str | Path) -> dict[str, Any]:
    """What plan.json says. Raises `BenchError` where it is damaged or missing."""
    folder = Path(folder)
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"cannot read {folder / PLAN}: {error.strerror}") from error
    except ValueError as error:
        raise BenchError(f"{folder / PLAN} is damaged: {error}") from error
    if not isinstance(plan, dict) or plan.get("format") != WORK_FORMAT:
        raise BenchError(f"{folder / PLAN} is not a plan of `trainonce latency pack` of this version")
    if plan.pop("sha256", None) != hash_of(plan):
        raise BenchError(f"{folder / PLAN} is damaged or was edited: pack the folder again")
    return plan


class _Kept:
    """The lines that are measured, in memory and in a file whose first line says what is measured, and where."""

    def __init__(self, path: Path, about: Mapping[str, Any], counts: Sequence[Mapping[str, int]]) -> None:
        self.path, self.lines = path, list[Line]()
        whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # half a line at the end is lost
        try:
            found = [json.loads(line) for line in whole]
        except ValueError as error:
            raise BenchError(f"{path} is damaged: delete it to measure anew") from error
        if found[:1] == [about]:
            self.lines = found[1:]
        for number, line in enumerate(self.lines):
            sizes = {key: len(value) for key, value in line.items() if key != "number"}
            if number >= len(counts) or line["number"] != number or sizes != counts[number]:
                raise BenchError(f"{path}, line {number + 2} is damaged: delete the file to measure anew")
        with path.open("wb") as file:
            for values in (about, *self.lines):
                file.write(json.dumps(values).encode() + b"\n")

    def add(self, line: Line) -> None:
        self.lines.append(line)
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def measure_folder(folder: str | Path, *, say: Callable[[str], None] = print) -> Path:
    """Measure what a folder of `trainonce latency pack` names on this machine, into its result.json.

    Raises `BenchError` for a damaged folder, and where the runtime is not installed.
    """
    folder, plan = Path(folder), read_plan(folder)
    runtime, settings = plan["runtime"], plan["settings"]
    opener, package = RUNTIMES[runtime]
    try:
        open_ = opener(settings["threads"])
    except ImportError as error:
        raise BenchError(f"this needs the packages {package} and numpy ({error})") from error
    about = {
        "plan": plan["plan"],
        "settings": settings,
        "machine": this_machine(),
        "versions": {**plan["versions"], "python": platform.python_version(), package: version_of(package)},
    }
    work = BenchWork(plan["parts"], plan["anchors"], plan["groups"])
    kept = _Kept(folder / KEPT, about, work.counts())
    try:
        with zipfile.ZipFile(folder / MODELS) as models, pinned(settings["threads"]):

            def prepare(names: Sequence[str]) -> list[Call]:
                return [open_(*_model(models, name)) for name in names]

            bench = Bench(prepare, settings["rounds"])
            left = 1 - len(kept.lines) / len(work.counts())
            say(
                f"{runtime}, about {1 + round(left * bench.seconds(work) / 60)} min; the machine best does nothing else"
            )
            bench.measure(work, len(kept.lines), kept.add, _Progress(say))
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise BenchError(f"{folder / MODELS} is damaged or missing: {error}") from error
    _, (slow, fast) = without_drift([line for line in kept.lines if "ms" in line])
    made = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    result = {"format": RESULT_FORMAT, **about, "made": made, "lines": kept.lines}
    path = folder / RESULT
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps({**result, "sha256": hash_of(result)}), encoding="utf-8")
    beside.replace(path)
    say(f"The machine's pace went from {fast:.2f} to {slow:.2f} times its usual time, which is taken out.")
    say(f"Wrote {path}: take it to where the run is, and there `trainonce latency unpack {RESULT} RUN`.")
    return path


def _model(models: zipfile.ZipFile, name: str) -> tuple[dict[str, bytes], Shape]:
    about = json.loads(models.read(f"{name}/{HOLES}"))
    files = {file: filled(models.read(f"{name}/{file}"), holes) for file, holes in about["files"].items()}
    return files, about["shape"]


class _Progress:
    """A line for each line that was measured, with what is left by those so far."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.began, self.first = say, time.monotonic(), -1

    def __call__(self, done: int, total: int, what: str) -> None:
        if self.first < 0:
            self.first = done
        made = done - self.first
        left = (time.monotonic() - self.began) / made * (total - done) if made else 0
        self.say(f"{done}/{total} {what}" + (f", {left:.0f} s left" if made and done < total else ""))


def main() -> None:
    """Measure the folder that this file is in."""
    parser = argparse.ArgumentParser(description="Measure this machine; it writes result.json beside this file.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    try:
        measure_folder(parser.parse_args().folder)
    except BenchError as error:
        sys.exit(f"measure.py: {error}")
    except KeyboardInterrupt:
        sys.exit(f"measure.py: stopped; what is measured is kept in {KEPT}: start it again to go on")


if __name__ == "__main__":
    main()
