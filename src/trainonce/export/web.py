"""A page that runs ONNX files in a browser: one HTML file with the files, ONNX Runtime and everything else inside.

The runtime is npm's package onnxruntime-web, of which two files are needed. It is not part of trainonce: a person names
where it is once, and it is kept in the cache folder. Its hashes are pinned.
"""

import base64
import gzip
import hashlib
import html
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from trainonce.data.download import PublishedFile, fetch
from trainonce.errors import UserError
from trainonce.export.description import INPUT, OUTPUT
from trainonce.files import read_bytes, write_atomic
from trainonce.nn.native.library import cache_folder
from trainonce.pages import json_in_script
from trainonce.settings import Number, Record, Whole
from trainonce.subnets.description import Preprocessing
from trainonce.version import __version__

VERSION = "1.30.0"
PACKAGE = PublishedFile(
    url=f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz",
    checksum="d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71",
    members=("package/dist/ort.wasm.bundle.min.mjs", "package/dist/ort-wasm-simd-threaded.wasm"),
)
"""The published package, 33 MB, and the files of it that a page holds: 14 MB, of which it takes 5."""
SCRIPT, PROGRAM = (Path(member).name for member in PACKAGE.members)
SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    PROGRAM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
NPM = "npm"
"""What a person names to have it fetched."""
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:; "
    "img-src data: blob:; media-src blob: mediastream:"
)
"""Content security policy: nothing is fetched."""


class WebModel(Record):
    """A network of a page."""

    name: str
    file: str
    """Where its ONNX file was."""
    sha256: str
    macs: Whole
    bytes: Whole
    top1: Number | None
    """Of the file on the test split, in percent, as its certificate says; None without one."""
    test_images: Whole
    preprocessing: Preprocessing


def runtime_files(named: str | Path | None = None) -> dict[str, bytes]:
    """ONNX Runtime for browsers: the two files by name, kept in the cache folder once they were found.

    `named` says where they are: npm's tarball, a folder of the package or of the files, or `npm` to fetch them. Raises
    `UserError` where they are nowhere, and for other files than those of `VERSION`.
    """
    kept = cache_folder() / f"onnxruntime-web-{VERSION}"
    if named is not None and str(named) != NPM:
        found = _read(Path(named))
        for name, content in found.items():
            if hashlib.sha256(content).hexdigest() != SHA256[name]:
                raise UserError(f"{named}: its {name} is not that of onnxruntime-web {VERSION}")
        try:
            kept.mkdir(parents=True, exist_ok=True)
            for name, content in found.items():
                write_atomic(kept / name, content)
        except OSError:
            return found  # what cannot be kept is named again next time
        return found
    if named is not None and not _is_kept(kept):
        fetch(PACKAGE, kept)
    if not _is_kept(kept):
        raise UserError(
            f"a page needs onnxruntime-web {VERSION}, once: --runtime {NPM} fetches it from npm (33 MB), or get "
            f"{PACKAGE.url} and name it, --runtime {PACKAGE.name}; it is kept in {kept}"
        )
    return {name: read_bytes(kept / name) for name in SHA256}


def _is_kept(folder: Path) -> bool:
    try:
        return all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == SHA256[name] for name in SHA256)
    except OSError:
        return False


def _read(place: Path) -> dict[str, bytes]:
    """The two files in a tarball of npm's, or in a folder. Raises `UserError` where they are not there."""
    if place.is_dir():
        folder = next((one for one in (place / "dist", place / "package" / "dist") if one.is_dir()), place)
        return {name: read_bytes(folder / name) for name in SHA256}
    try:
        with tarfile.open(place) as tar:
            members = {Path(member).name: tar.extractfile(member) for member in PACKAGE.members}
            return {name: member.read() for name, member in members.items() if member is not None}
    except (OSError, tarfile.TarError, KeyError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{place} is not npm's tarball of onnxruntime-web {VERSION}: {reason}") from error


def build_web_page(
    models: Sequence[tuple[WebModel, bytes]], classes: Sequence[str], runtime: Mapping[str, bytes], title: str
) -> bytes:
    """The page, in UTF-8. Of each model its ONNX file; all have these classes."""
    static = files("trainonce.export") / "static"
    told = {
        "classes": list(classes),
        "input": INPUT,
        "output": OUTPUT,
        "models": [model.model_dump(mode="json") for model, _ in models],
    }
    script = runtime[SCRIPT].decode()
    inside = "\n".join(
        _packed(f"model-{number}", content) for number, content in enumerate(content for _, content in models)
    )
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<style>
{(static / "web.css").read_text(encoding="utf-8")}</style>
</head>
<body>
{(static / "web.html").read_text(encoding="utf-8").replace("TITLE", html.escape(title))}
<footer><p>Written by trainonce {__version__}; computed by ONNX Runtime {VERSION} in this page. It holds all that it
needs: no image leaves it, and no connection is made.</p></footer>
<script type="application/json" id="told">{json_in_script(told)}</script>
{inside}
{_packed("program", runtime[PROGRAM])}
{_packed("runtime", script.encode())}
<script>
{(static / "web.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""
    return page.encode()


def _packed(name: str, content: bytes) -> str:
    """Some bytes in the page, compressed: a browser unpacks them."""
    text = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
    return f'<script type="application/octet-stream" id="{name}">{text}</script>'
