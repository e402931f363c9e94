"""The beginning of the command line: what it imports can be stopped meanwhile, and a system refused in a sentence."""

import os
import sys
from collections.abc import MutableMapping

from trainonce.cli.stopping import importing
from trainonce.errors import UserError

SPINS = "3000"
"""How often a thread of libgomp, which torch and the native kernels compute with, looks for others before it sleeps."""


def wait_shortly(environment: MutableMapping[str, str]) -> None:
    """Let threads that wait for each other sleep soon, before torch is imported: libgomp reads this when it is loaded.

    By default they look some 300,000 times, and where another program has a core, a step by two threads takes 10 to 30
    times as long as by one (docs/speed.md). What a person has asked of OpenMP stays.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)


def main() -> None:
    """Run the command line."""
    wait_shortly(os.environ)
    try:
        with importing():
            from trainonce.cli import app as cli
    except UserError as error:  # of a system that is not supported
        sys.stderr.write(f"trainonce: {error}\n")
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
