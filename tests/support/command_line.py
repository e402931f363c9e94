"""Running the command line in this process, and what it says when it refuses."""

import contextlib
import io
import re
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from trainonce.cli import app as cli


class Result(NamedTuple):
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def refused(self, pattern: str, code: int = 2) -> None:
        """One sentence on stderr and nothing else that looks like a crash."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("trainonce:")]
        assert len(lines) == 1, self.err
        assert re.search(pattern, lines[0]), lines[0]


def trainonce(*arguments: str | Path) -> Result:
    """Run what `trainonce ARGUMENTS` does."""
    out, err, argv, shown = io.StringIO(), io.StringIO(), sys.argv, warnings.showwarning
    sys.argv = ["trainonce", *map(str, arguments)]
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv, warnings.showwarning = argv, shown
    assert isinstance(code, int)
    return Result(code, out.getvalue(), err.getvalue())
