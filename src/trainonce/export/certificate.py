"""The certificate: the same images through supernet, extracted network and exported file, in numbers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from pydantic import Field
from torch import Tensor

from trainonce.errors import UserError
from trainonce.export.compare import FLOAT16_TOLERANCE, TOLERANCE, LogitComparison, compare
from trainonce.export.description import Opened, Quantised, Run
from trainonce.export.first_difference import FirstDifference, first_difference
from trainonce.export.reference import Reference
from trainonce.latency import time_and_drift, time_ms, was_quiet
from trainonce.latency.bench import TURNS
from trainonce.names import plural
from trainonce.nn.fast import fastest_layout
from trainonce.run.directory import provenance
from trainonce.settings import JsonObject, Number, Record, Whole

FORMAT = "trainonce-certificate-1"
FILE = "certificate.json"
LATENCY_ROUNDS, FEWEST_ROUNDS, LATENCY_S = 50, 10, 0.5
"""How often the networks are timed: at most, at least, and in between as often as these seconds allow."""
LOOKED_INSIDE = 8
"""How many images of each kind are followed from layer to layer where something differs."""
PACKAGES = (
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "executorch",
    "coremltools",
    "ai-edge-litert",
    "ncnn",
    "pnnx",
    "tflite-micro",
)


class ExportedFile(Record):
    """A file that is certified."""

    bytes: Whole
    sha256: str


class ComparedImages(Record):
    """How many random images, and how many of the test split, went through the network and the file."""

    random: Whole
    test: Whole
    supernet: Whole | None = None
    """How many of the test split went through the supernet too, beside the random ones; early ones: all, unsaid."""


class ExportTimes(Record):
    """Median milliseconds of one image; nothing where the file was not opened."""

    extracted: Number | None = None
    """Through the extracted network, by torch, its weights in the order in which that is fastest."""
    exported: Number | None = None
    """Through the file, in turns with it."""
    batch: Whole | None = None
    rounds: Whole | None = None
    threads: Whole | None = None
    drift: list[Number] = Field(default_factory=list)
    """The machine's slowest and fastest pace meanwhile, as factors of its usual one; taken out, as from a table."""
    quiet: bool | None = None
    """Whether they are near each other; where not, other work ran beside, and these times are not to be quoted."""


class Certificate(Record):
    """What was compared and what came out: what certificate.json holds, in the order of its keys."""

    format: str
    target: str
    precision: str
    passed: bool | None
    """None where nothing is wrong, but the file's runtime is not here: whether it is the same network was not seen."""
    verdict: str
    """The outcome in a sentence."""
    architecture: str
    weights_sha256: str
    description: JsonObject | None = None
    """Whose file this is: classes, preprocessing, sizes, as `FileDescription.of_subnet` gives them; early ones have
    none."""
    files: dict[str, ExportedFile]
    images: ComparedImages
    supernet_and_extracted: LogitComparison | str
    extracted_and_exported: LogitComparison | str
    top1: dict[str, Number | str]
    """Percent of the whole test split classified correctly by each of the three, or why that was not measured.

    The supernet's is the network's where all logits that were compared are the same to the last bit."""
    float32_bytes: Whole
    """What the extracted network's weights and statistics take in float32."""
    latency_ms: ExportTimes
    first_difference: FirstDifference | None
    """The first layer that computes something else, where one does and can be seen."""
    details: Quantised
    """For int8 how it was quantised and what that cost, for a microcontroller what it needs; nothing for others."""
    tolerance: Number
    """How far an image's logits may be apart, as a part of its largest one, or absolutely where that is below 1."""
    provenance: JsonObject


@dataclass(frozen=True, kw_only=True)
class ReferenceLogits:
    """The logits of the two networks that every exported file of a subnet is held against, computed once."""

    reference: Reference
    extracted: tuple[Tensor, Tensor | None]
    """The network's, its weights in the order in which torch is fastest."""
    supernet: tuple[Tensor, Tensor | None] | None
    """The supernet's, of all test images or of some."""
    beside: tuple[Tensor, Tensor | None] | None
    """The network's of the same images, its weights in the order of the supernet's: another may round otherwise."""

    @classmethod
    def of(cls, reference: Reference) -> "ReferenceLogits":
        """Compute them, the supernet's on all test images only where it does not agree to the last bit on some.

        Raises `UserError` where the subnet itself gives numbers that are not finite.
        """
        layout = fastest_layout(reference.network)
        extracted = reference.logits(reference.fastest, layout=layout)
        if not all(logits.isfinite().all() for logits in extracted if logits is not None):
            raise UserError(
                f"{reference.path} gives logits that are not finite: there is nothing to compare a file with"
            )
        supernet = beside = None
        if reference.supernet is not None:
            for rows in (reference.supernet_rows, None):
                supernet = reference.logits(reference.supernet, layout=layout, rows=rows)
                beside = reference.logits(reference.network, layout=layout, rows=rows)
                if torch.equal(_all(supernet), _all(beside)):
                    break
        return cls(reference=reference, extracted=extracted, supernet=supernet, beside=beside)


def certify(
    expected: ReferenceLogits,
    opened: Opened | None,
    *,
    target: str,
    precision: str,
    files: Mapping[str, bytes],
    details: Quantised,
    max_loss: float,
    runs_here: bool = True,
    not_opened: str = "",
) -> Certificate:
    """Compare an exported file with the networks that it was made from.

    `max_loss` is how many points of top-1 a float16 or int8 file may lose. Without `opened` only what does not need
    the file's computing is said, and `not_opened` says why; it is not said to pass where its target never `runs_here`.
    """
    reference = expected.reference
    above: LogitComparison | str = f"not compared: {reference.no_supernet}"
    if expected.supernet is not None and expected.beside is not None:
        above = compare(_all(expected.beside), _all(expected.supernet))
    logits = None if opened is None else reference.logits(opened.run)
    tolerance = FLOAT16_TOLERANCE if precision == "float16" else TOLERANCE
    below: LogitComparison | str = f"not compared: {not_opened}"
    if logits is not None:
        below = compare(_all(expected.extracted), _all(logits), tolerance)
    same = isinstance(above, LogitComparison) and above.identical
    supernet = expected.extracted if same else expected.supernet
    top1 = _top1(reference, {"supernet": supernet, "extracted": expected.extracted, "exported": logits})
    first = None
    if opened is not None and precision != "int8" and isinstance(below, LogitComparison) and not below.agrees:
        first = _first_difference(reference, opened, tolerance)
    tested = 0 if reference.data is None else len(reference.data.test)
    verdict = _verdict(above, below, first, top1, tested, precision=precision, max_loss=max_loss)
    return Certificate(
        format=FORMAT,
        target=target,
        precision=precision,
        passed=False if verdict else True if runs_here else None,
        verdict=verdict
        or _in_words(above, below) + ("" if precision == "float32" else _loss_in_words(top1, precision)),
        architecture=reference.file.architecture,
        weights_sha256=reference.file.weights_sha256,
        description=reference.file.of_subnet(),
        files={
            name: ExportedFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in files.items()
        },
        images=ComparedImages(
            random=len(reference.random_BCHW),
            test=tested,
            supernet=0 if expected.supernet is None or expected.supernet[1] is None else len(expected.supernet[1]),
        ),
        supernet_and_extracted=above,
        extracted_and_exported=below,
        top1=top1,
        float32_bytes=sum(t.numel() * t.element_size() for t in reference.network.state_dict().values()),
        latency_ms=ExportTimes() if opened is None else _latency(reference, opened.run),
        first_difference=first,
        details=details,
        tolerance=tolerance,
        provenance=_provenance(),
    )


def _all(logits: tuple[Tensor, Tensor | None]) -> Tensor:
    return torch.cat([part for part in logits if part is not None])


def _top1(reference: Reference, logits: Mapping[str, tuple[Tensor, Tensor | None] | None]) -> dict[str, float | str]:
    if reference.data is None:
        return dict.fromkeys(logits, f"not compared: {reference.no_data}")
    labels_N = reference.data.test.labels.cpu()
    found: dict[str, float | str] = {}
    for name, pair in logits.items():
        if pair is None or pair[1] is None:
            found[name] = "not compared"
        else:
            found[name] = 100 * int((pair[1].argmax(1) == labels_N).sum()) / len(labels_N)
    return found


def _first_difference(reference: Reference, opened: Opened, tolerance: float) -> FirstDifference | None:
    images = [reference.random_BCHW[:LOOKED_INSIDE]]
    if reference.data is not None:
        images.append(next(reference.inputs(reference.data.test.drawn(LOOKED_INSIDE, seed=0))))
    return first_difference(reference.network, opened, torch.cat(images), tolerance)


def _verdict(
    above: LogitComparison | str,
    below: LogitComparison | str,
    first: FirstDifference | None,
    top1: Mapping[str, float | str],
    images: int,
    *,
    precision: str,
    max_loss: float,
) -> str:
    """What is wrong, in a sentence; empty where nothing is."""
    if isinstance(above, LogitComparison) and not above.agrees:
        return f"the extracted network is not the supernet's subnet: {_apart(above)}"
    if isinstance(below, str):
        return ""
    if below.constant:
        return "the exported file is not the extracted network: it gives the same answer for every image"
    if precision == "int8" and below.largest_difference is None:
        return f"the exported file is not the extracted network: {_apart(below)}"
    if precision == "int8" or below.agrees:
        return "" if precision == "float32" else _too_much_lost(top1, images, precision=precision, max_loss=max_loss)
    if first is None:
        where = "no single layer stands out, or the file does not let one look inside"
    else:
        off = "not finite" if first.largest_difference is None else f"off by up to {first.largest_difference:.2g}"
        where = f"the first layer that differs is {first.layer}, {off} where values reach {first.largest_value:.2g}"
    return f"the exported file is not the extracted network: {_apart(below)}; {where}"


def _too_much_lost(top1: Mapping[str, float | str], images: int, *, precision: str, max_loss: float) -> str:
    """What is wrong with a file's top-1, in a sentence; float16 is judged by its logits alone where there is none."""
    floating, found = top1["extracted"], top1["exported"]
    if isinstance(floating, str) or isinstance(found, str):
        return f"what int8 loses of top-1 is {floating}" if precision == "int8" else ""
    lost = floating - found
    if lost <= max_loss:
        return ""
    counted = f"{round(lost * images / 100)} of {plural(images, 'test image')}"
    return f"{precision} loses {lost:.2f} points of top-1 ({counted}), more than the {max_loss:g} allowed"


def _apart(found: LogitComparison) -> str:
    if found.largest_difference is None:
        return "its logits are not finite or of another shape"
    return (
        f"logits differ by up to {found.largest_difference:.2g}, those of an image by up to {found.largest_ratio:.2g} "
        f"times what is allowed for it, and {found.unequal_top1} of {found.images} images get another class"
    )


def _in_words(above: LogitComparison | str, below: LogitComparison | str) -> str:
    if isinstance(above, str):
        first = f"supernet {above}"
    elif above.identical:
        first = f"supernet and extracted network agree to the last bit on {above.images:,} images"
    else:
        first = f"supernet and extracted network agree to {above.largest_difference:.2g} on {above.images:,} images"
    if isinstance(below, str):
        return f"{first}; exported file {below}"
    return (
        f"{first}; the exported file's logits are within {below.largest_difference:.2g}, "
        f"and {below.unequal_top1} of {below.images:,} images get another class"
    )


def _loss_in_words(top1: Mapping[str, float | str], precision: str) -> str:
    floating, quantised = top1["extracted"], top1["exported"]
    if not isinstance(floating, float) or not isinstance(quantised, float):
        return ""
    return f"; {precision} changes top-1 by {quantised - floating:+.2f} points"


def _latency(reference: Reference, run: Run) -> ExportTimes:
    one_1CHW = reference.random_BCHW[:1]

    @torch.inference_mode()
    def extracted() -> Tensor:
        logits: Tensor = reference.fastest(one_1CHW)
        return logits

    calls = [extracted, lambda: run(one_1CHW)]
    rounds = _rounds(1e-3 * sum(time_ms(calls, rounds=1, repeats=1, warm_up=1)))
    rounds -= rounds % TURNS
    (torch_ms, exported_ms), drift = time_and_drift(calls, rounds=rounds)
    return ExportTimes(
        extracted=torch_ms,
        exported=exported_ms,
        batch=1,
        rounds=rounds,
        threads=torch.get_num_threads(),
        drift=drift,
        quiet=was_quiet(drift),
    )


def _rounds(once_s: float) -> int:
    """How many rounds there is time for, where a run of each network takes so long: each has four in its turn."""
    return min(LATENCY_ROUNDS, max(FEWEST_ROUNDS, int(LATENCY_S / (4 * once_s))))


def _provenance() -> JsonObject:
    found = provenance("cpu")
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
