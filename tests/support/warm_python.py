"""Python in processes of their own that have torch already: as `python -c`, without the seconds of importing it.

Run as a program, this is the process that imports torch, and nothing of trainonce, and forks a child for each line of
JSON on stdin.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_python(
    code: str, *arguments: str | Path, folder: Path | None = None, environment: Mapping[str, str] = os.environ
) -> "subprocess.CompletedProcess[str]":
    """How a process ended that ran `code` in a folder, with these arguments and environment variables."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as place:
        job = {
            "code": code,
            "arguments": list(map(str, arguments)),
            "folder": str(folder or Path.cwd()),
            "environment": dict(environment),
            "place": place,
        }
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        ended = int(server.stdout.readline())
        out, err = (Path(place, name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess([sys.executable, "-c", code], ended, out, err)


@functools.cache
def _server() -> "subprocess.Popen[str]":
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def close() -> None:
        server.communicate()

    atexit.register(close)
    return server


def _child(job: dict[str, Any]) -> int:
    """Run a job in this process, which is then over; gives its exit code."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(job["place"], name), os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.path[0], sys.argv, tempfile.tempdir = "", ["-c", *job["arguments"]], None
    try:
        exec(compile(job["code"], "<string>", "exec"), {"__name__": "__main__"})
    except BaseException:  # noqa: BLE001, a child must never go on as its parent
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = _child(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
