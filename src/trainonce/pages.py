"""HTML pages that hold all that they show: how one is written, and JSON inside it."""

import json
from pathlib import Path
from typing import Any

from trainonce.errors import RunError
from trainonce.files import write_atomic


def write_page(path: str | Path, content: bytes) -> None:
    """Write a page, and the folders that lead to it. Raises `RunError` where the disk refuses."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def json_in_script(value: Any) -> str:
    """A value as JSON that is safe inside a script element. Raises `ValueError` for numbers that are not finite."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
