"""What the site says of the code, made from the code: the recipes, the commands, the names that a person imports.

A page asks for it by a comment, `<!-- generated: recipes -->`, which `filled` replaces by Markdown.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import typer

import trainonce
from trainonce.cli.app import app
from trainonce.recipes import RECIPES


def recipes_table() -> str:
    """A row for each recipe: its name and length, what it is about and its phases."""
    rows = [
        f"| `{name}` | {recipe.epochs:g} | {recipe.about} Phases: {', '.join(phase.name for phase in recipe.phases)}. |"
        for name, recipe in RECIPES.items()
    ]
    return "\n".join(["| recipe | epochs | what it is |", "|---|---|---|", *rows])


def commands() -> str:
    """A section for each command: what it does, how it is called, its arguments and options."""
    group = typer.main.get_command(app)
    return "\n\n".join(_sections(group, "trainonce"))


def _sections(command: Any, name: str) -> Iterator[str]:
    """The sections of a command, or of those inside a group; `command` is one of typer's."""
    if isinstance(command, typer.core.TyperGroup):
        context = command.make_context(name, [], resilient_parsing=True)
        for word in command.list_commands(context):
            yield from _sections(command.get_command(context, word), f"{name} {word}")
        return
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    entries = [_entry(parameter, context) for parameter in command.params if parameter.name != "help"]
    yield "\n\n".join([f"## {name}", inspect.cleandoc(command.help or ""), f"```text\n{usage}\n```", *entries])


def _entry(parameter: Any, context: Any) -> str:
    """An argument or option as an item of a definition list."""
    names, about = parameter.get_help_record(context)
    if parameter.param_type_name == "argument":
        names = " ".join(parameter.get_usage_pieces(context))
    return f"`{names}`\n: {about}"


def public_face() -> str:
    """An entry for each name of `trainonce.__all__`, from its docstring."""
    return "\n\n".join(_documented(name) for name in trainonce.__all__ if name != "__version__")


def _documented(name: str) -> str:
    if name == "RECIPES":  # a dict has no docstring of its own
        return "## RECIPES\n\nEvery recipe by name: [the recipes](recipes.md)."
    value = getattr(trainonce, name)
    if inspect.ismodule(value):
        inside = "\n".join(f".. autofunction:: trainonce.{name}.{one}" for one in _functions(value))
        return f"## {name}\n\n{inspect.getdoc(value)}\n\n```{{eval-rst}}\n{inside}\n```"
    kind = "class" if inspect.isclass(value) else "function"
    return f"## {name}\n\n```{{eval-rst}}\n.. auto{kind}:: trainonce.{name}\n```"


def _functions(module: ModuleType) -> list[str]:
    """The public functions of a package, by name."""
    return [name for name in module.__all__ if inspect.isfunction(getattr(module, name))]


PARTS: dict[str, Callable[[], str]] = {"recipes": recipes_table, "commands": commands, "public face": public_face}


def filled(page: str) -> str:
    """A page with each `<!-- generated: NAME -->` replaced. Raises `KeyError` for a name that is none of `PARTS`."""
    return re.sub(r"<!-- generated: ([a-z ]+) -->", lambda found: PARTS[found[1]](), page)
