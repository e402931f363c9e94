"""The command line: parse, call, print. `main` turns refusals into a sentence and an exit code.

Exit codes: 0 done; 1 the work could not go on; 2 what was asked for cannot be; 130 and 143 stopped by
Ctrl-C or SIGTERM with everything saved.
"""

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from trainonce.cli import display
from trainonce.cli.conclude import conclude
from trainonce.cli.demo import demo
from trainonce.cli.evaluate import evaluate
from trainonce.cli.export import export
from trainonce.cli.extract import extract
from trainonce.cli.finetune import finetune
from trainonce.cli.fit import fit
from trainonce.cli.import_ofa import import_ofa
from trainonce.cli.latency import latency
from trainonce.cli.listing import list_names
from trainonce.cli.measure import measure
from trainonce.cli.predict import predict
from trainonce.cli.push import push
from trainonce.cli.report import draw, report
from trainonce.cli.search import search
from trainonce.cli.ship import ship
from trainonce.cli.study import study
from trainonce.cli.tools import WholeHelp
from trainonce.cli.train import train
from trainonce.cli.verify import verify
from trainonce.errors import RunError, Stopped, UserError
from trainonce.files import private_folder
from trainonce.version import __version__


class _Commands(WholeHelp):
    """The commands; Ctrl-C, at which Typer would end without a word, is a sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped("stopped", 128 + signal.SIGINT) from None


app = typer.Typer(
    cls=_Commands,
    help="Train one once-for-all supernet; take out a network for every device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut the names of options in a terminal of 80 columns
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "extract": extract,
    "list": list_names,
    "search": search,
    "export": export,
    "ship": ship,
    "predict": predict,
    "demo": demo,
    "fit": fit,
    "finetune": finetune,
    "push": push,
    "draw": draw,
    "report": report,
    "measure": measure,
    "conclude": conclude,
    "study": study,
    "import-ofa": import_ofa,
    "verify": verify,
}
for name, command in COMMANDS.items():
    app.command(name=name)(command)
app.add_typer(latency, name="latency")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        display.out.print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; print a refusal as a sentence."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show is spelled out, on stderr it is anyway
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: display.err.print(f"Warning: {message}")
    warnings.filterwarnings("ignore", module="PIL")  # which names no file; what matters is an error that does
    _stand_in_for_home()
    try:
        app()
    except UserError as error:
        _say(error, 2)
    except RunError as error:
        _say(error, 1)
    except (MemoryError, RuntimeError) as error:
        from trainonce.cost.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _say("the memory is full; what was saved is safe. Smaller images, networks or batches need less", 1)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _say(f"the system refused{where}: {error.strerror or error}", 1)
    except Stopped as stopped:
        _say(stopped, stopped.code)


def _stand_in_for_home() -> None:
    """Where this user has no home directory, let a folder for temporary files be it: libraries keep things there."""
    try:
        Path.home()
    except RuntimeError:
        with contextlib.suppress(OSError):  # then what needs one says so
            os.environ["HOME"] = str(private_folder())
            display.err.print(f"There is no home directory: {os.environ['HOME']} is used instead, until it is cleared.")


def _say(error: Exception | str, code: int) -> None:
    if not (isinstance(error, UserError | RunError) and error.everywhere) or _first():
        display.err.print(Text.assemble(("trainonce:", "bold red"), f" {error}"))
    sys.exit(code)


def _first() -> bool:
    from trainonce.parallel.distributed import is_first_process

    return is_first_process()
