"""`trainonce push`: a subnet's directory on the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from trainonce.cli import display
from trainonce.cli.options import Json, SubnetArgument
from trainonce.cli.stopping import importing

if TYPE_CHECKING:
    pass


def push(
    subnet: SubnetArgument,
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository; it is made if need be.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Make it private, if it is made.")] = False,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="HF_TOKEN", show_envvar=True, help="A token that may write. Default: the one of `hf auth login`."
        ),
    ] = None,
    message: Annotated[str | None, typer.Option(help="The commit's message.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded; upload nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a subnet's directory, with its model card and exports, to the Hugging Face Hub."""
    with importing():
        from trainonce.pipeline.hub import files_to_push, push_to_hub

    names = files_to_push(subnet)
    if dry_run:
        sizes = {str(name): (subnet / name).stat().st_size for name in names}
        if as_json:
            display.print_json({"repository": repository, "files": sizes})
            return
        for name, size in sizes.items():
            display.out.print(f"{size:>12,}  {name}")
        display.err.print(f"Would be uploaded to {repository}.")
        return
    address = push_to_hub(subnet, repository, private=private, token=token or None, commit_message=message)
    if as_json:
        display.print_json({"repository": repository, "commit": address, "files": [str(name) for name in names]})
        return
    display.out.print(f"Uploaded {len(names)} files: {address}")
