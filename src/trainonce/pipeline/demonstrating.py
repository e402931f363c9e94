"""A page that runs subnets in a browser, from their ONNX files."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainonce.cost.macs import counted_cost
from trainonce.errors import UserError
from trainonce.export.certificate import FILE as CERTIFICATE
from trainonce.export.certificate import Certificate
from trainonce.export.integrity import judged
from trainonce.export.onnx import FILE, description_in, parsed
from trainonce.export.web import WebModel, build_web_page, runtime_files
from trainonce.files import read_bytes
from trainonce.nn.kinds import read_spec
from trainonce.pages import write_page
from trainonce.pipeline.exporting import export
from trainonce.subnets import read_subnet


@dataclass(frozen=True, kw_only=True)
class WebPage:
    """A page that was written."""

    path: Path
    bytes: int
    models: tuple[WebModel, ...]
    """Its networks, by MACs."""


def demo(
    subnets: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    runtime: str | Path | None = None,
    title: str | None = None,
    on_export: Callable[[Path], None] = lambda _subnet: None,
) -> WebPage:
    """Write a page that runs subnets in a browser: `trainonce demo`, whose options these are.

    Each of `subnets` is a subnet's directory, whose ONNX file is taken, and made where there is none, or an ONNX file.
    `runtime` is where onnxruntime-web is (`trainonce.export.web.runtime_files`), needed once. The page is `out`, by
    default demo.html beside the first subnet. `on_export` is called before a file is made. Raises `UserError` for what
    cannot be, and where the networks have not the same classes and channels.
    """
    places = [Path(one) for one in ([subnets] if isinstance(subnets, str | Path) else subnets)]
    if not places:
        raise UserError("name a subnet's directory, or an ONNX file")
    program = runtime_files(runtime)
    found = sorted((_model(place, on_export) for place in places), key=lambda one: one[0].macs)
    models = [(model, content) for model, content, _ in found]
    first, classes = models[0][0], found[0][2]
    for model, _, others in found[1:]:
        if (others, model.preprocessing.channels) != (classes, first.preprocessing.channels):
            raise UserError(
                f"{model.file} has other classes or channels than {first.file}: a page has one kind of image"
            )
    path = Path(out) if out is not None else places[0].resolve().parent / "demo.html"
    content = build_web_page(models, classes, program, title or _title(classes))
    write_page(path, content)
    return WebPage(path=path, bytes=len(content), models=tuple(model for model, _ in models))


def _model(place: Path, on_export: Callable[[Path], None]) -> tuple[WebModel, bytes, tuple[str, ...]]:
    """A network for the page, its ONNX file and its classes."""
    path = place
    if place.is_dir():
        path = next((one for one in (place / "export" / "onnx" / FILE, place / FILE) if one.is_file()), place)
        if path == place:
            read_subnet(place)  # refuses what is none before anything is said
            on_export(place)
            path = export(place, "onnx").done[0].file
    content = read_bytes(path)
    verdict = judged(path, {path.name: content})
    if verdict.state == "damaged":
        raise UserError(verdict.why)
    description = description_in(parsed(content, where=str(path)), str(path))
    top1, images = _tested(path)
    model = WebModel(
        name=place.stem if place.is_file() and place.stem != "model" else _name(place),
        file=str(path),
        sha256=hashlib.sha256(content).hexdigest(),
        macs=counted_cost(read_spec(description.network, beside=path.parent)).macs,
        bytes=len(content),
        top1=top1,
        test_images=images,
        preprocessing=description.preprocessing,
    )
    return model, content, description.classes


def _name(place: Path) -> str:
    """What a network is called: its subnet's directory, with the target where that is not `onnx`."""
    if place.is_dir():
        return place.resolve().name
    target, subnet = place.resolve().parent, place.resolve().parent.parent.parent
    return subnet.name if target.name == "onnx" else f"{subnet.name} {target.name}"


def _tested(path: Path) -> tuple[float | None, int]:
    """Top-1 of a file on the test split, and of how many images, as the certificate beside it says."""
    beside = path.parent / CERTIFICATE
    if not beside.is_file():
        return None, 0
    certificate = Certificate.read_file(beside)
    top1 = certificate.top1.get("exported")
    return (float(top1), certificate.images.test) if isinstance(top1, int | float) else (None, 0)


def _title(classes: Sequence[str]) -> str:
    named = ", ".join(classes[:4])
    return f"Which is it: {named}{' …' if len(classes) > 4 else ''}?"
