"""The beginning of the command line: it imports the rest, which takes seconds, and can be stopped meanwhile."""

import os
import signal
import sys
from types import FrameType

from trainonce.errors import UserError


def main() -> None:
    """Run the command line."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else whoever started this process wants Ctrl-C to be ignored
        signal.signal(signal.SIGINT, _stop)
    try:
        from trainonce.cli import app as cli
    except UserError as error:  # of a system that is not supported
        sys.stderr.write(f"trainonce: {error}\n")
        sys.exit(2)
    signal.signal(signal.SIGINT, before)
    cli.main()


def _stop(_number: int, _frame: FrameType | None) -> None:
    """End at once: an exception in the middle of an import would be shown by whatever it passes through."""
    os.write(sys.stderr.fileno(), b"trainonce: stopped\n")
    os._exit(130)


if __name__ == "__main__":
    main()
