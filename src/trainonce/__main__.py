"""The beginning of the command line: what it imports can be stopped meanwhile, and a system refused in a sentence."""

import sys

from trainonce.cli.stopping import importing
from trainonce.errors import UserError


def main() -> None:
    """Run the command line."""
    try:
        with importing():
            from trainonce.cli import app as cli
    except UserError as error:  # of a system that is not supported
        sys.stderr.write(f"trainonce: {error}\n")
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
