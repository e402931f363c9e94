"""Subnets on the Hugging Face Hub, and in directories as its libraries have them: save, load, push.

Only a repository's own four files are fetched, and none of them is executed: trainonce builds the network, weights
come from safetensors, and both files that have a checksum must match it. Needs the extra `hub` for anything but a
local directory.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from trainonce.errors import RunError, UserError
from trainonce.extras import try_import
from trainonce.pipeline.verifying import refuse_damage, verify
from trainonce.records import read_json, to_json
from trainonce.subnets import FILES, read_subnet, verify_subnet, write_subnet
from trainonce.subnets.description import SubnetDescription

REPO_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
PLACES = ("run", "command", "file")
"""What names places on a machine where a description says how a subnet was trained, and in a certificate."""
PATH = re.compile(r"(?<![\w.])/[^\s/].*", re.DOTALL)
"""An absolute path in a sentence, and all that follows: where it ends cannot be told, since names may have spaces."""
CERTIFICATE = "certificate.json"


def save_pretrained(network: nn.Module, description: SubnetDescription, path: str | Path) -> None:
    """Write a subnet's directory and read it back; `description` is `describe_subnet`'s or `from_pretrained`'s.

    Raises `UserError` where something else than a subnet is there, and `RunError` where the disk refuses.
    """
    write_subnet(Path(path), network, description)
    verify_subnet(Path(path), network)


def from_pretrained(
    path_or_repo_id: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[nn.Module, SubnetDescription]:
    """The network, in evaluation mode, and the description of a local directory or of a repository on the Hub.

    A directory that is there wins. `revision` (a branch, tag or commit), `token` and `cache_dir` are for the Hub.
    Raises `UserError` where there is no such directory or repository, where it holds no whole subnet, or without the
    extra, and `RunError` where the Hub cannot be reached.
    """
    path, name = Path(path_or_repo_id), str(path_or_repo_id)
    if name and path.is_dir():
        return read_subnet(path)
    if path.exists() or not REPO_ID.fullmatch(name):
        raise UserError(f"{name} is neither a directory nor the name of a repository, such as owner/name")
    hub = _hub()
    with _refusals(hub, f"the repository {name} (no directory of that name is here)"):
        local = hub.snapshot_download(
            repo_id=name, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=list(FILES)
        )
    return read_subnet(Path(local))


def files_to_push(path: str | Path) -> list[Path]:
    """The files of a subnet's directory that `push_to_hub` uploads, by relative name.

    All but hidden ones, what Python leaves beside model.py, and exports that failed. Raises `UserError` where it is no
    whole subnet, or where an export beside it is damaged.
    """
    path = Path(path)
    read_subnet(path)
    refuse_damage(one for one in verify(path) if not any(_stays(part) for part in one.path.relative_to(path).parts))
    found = (file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file())
    return [file for file in found if not any(_stays(part) for part in file.parts)]


def _stays(name: str) -> bool:
    """Whether what is in a directory of this name, or the file of this name, is not for others."""
    return name.startswith((".", "__pycache__")) or name.endswith(".failed")


def push_to_hub(
    path: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a subnet's directory to a repository, which is made if need be; returns the commit's address.

    Exports beside the subnet go too; hidden files do not. What names folders of this machine stays at home: the
    uploaded config.json and certificates lack the run's path, command lines, the file of imported weights, and
    absolute paths in reasons. `private` is for a repository that is made. Raises `UserError` where the directory is no
    whole subnet, for a name, token or card that the Hub refuses, or without the extra, and `RunError` where the Hub
    cannot be reached.
    """
    path = Path(path)
    names = files_to_push(path)
    if not REPO_ID.fullmatch(repo_id):
        raise UserError(f"{repo_id!r} is not the name of a repository: that is owner/name")
    hub = _hub()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            copy = Path(folder) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if name.name == CERTIFICATE or str(name) == "config.json":
                copy.write_bytes(_cleaned(path / name))
            else:
                shutil.copyfile(path / name, copy)
        with _refusals(hub, f"the repository {repo_id}"):
            api = hub.HfApi(token=token)
            made = api.create_repo(repo_id, private=private, repo_type="model", exist_ok=True)
            commit = api.upload_folder(
                repo_id=made.repo_id,
                repo_type="model",
                folder_path=folder,
                commit_message=commit_message or "A subnet by trainonce",
            )
    return str(commit.commit_url)


def _cleaned(file: Path) -> bytes:
    """A certificate, or a description, without places on this machine and names of a person's own image files."""
    whole = file.name == CERTIFICATE
    try:
        values = {k: _without_places(v) if whole or k == "trained" else v for k, v in read_json(file).items()}
        if not whole and "per_class" in values:
            values["per_class"] = _without_files(values["per_class"])
        return to_json(values)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be uploaded: {error}") from error


def _without_files(value: Any) -> Any:
    """What `PerClass` records, without which files the worst images are."""
    if isinstance(value, list):
        return [_without_files(one) for one in value]
    if isinstance(value, dict):
        return {key: None if key == "file" else _without_files(one) for key, one in value.items()}
    return value


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items() if key not in PLACES}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return PATH.sub("…", value) if isinstance(value, str) else value


def _hub() -> Any:
    with try_import("the Hugging Face Hub", "hub"):
        import huggingface_hub
        import huggingface_hub.errors
    return huggingface_hub


@contextmanager
def _refusals(hub: Any, what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a sentence; its own messages say more than one."""
    errors = hub.errors
    try:
        yield
    except (errors.HFValidationError, errors.LocalTokenNotFoundError) as error:
        raise UserError(f"{what}: {_first_line(error)}") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{what} asks for permission first: {_first_line(error)}") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{what} has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{what} does not exist, or is private and needs another --token") from error
    except (errors.HTTPError, errors.EntryNotFoundError, OSError) as error:
        raise RunError(f"{what} cannot be reached: {_first_line(error)}") from error
    except ValueError as error:  # the card's metadata, of which the Hub says line by line what is wrong
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
