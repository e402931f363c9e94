"""The commands on a subnet's directory."""

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
