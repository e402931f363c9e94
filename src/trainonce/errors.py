"""The two ways in which trainonce says no, and how it ends when it is told to."""


class UserError(ValueError):
    """What was asked for cannot be: an unknown name, a bad value, an unreadable file.

    The message is one sentence that says what is wrong, where, and what would be right.
    The command line prints it and exits with code 2.
    """

    everywhere = False
    """Whether every process of a run raises it, so that the first need say it alone."""


class RunError(RuntimeError):
    """The work was asked for correctly but could not go on: a full disk, a loss that is not finite.

    The message is one sentence that says what happened and what is safe.
    The command line prints it and exits with code 1.
    """

    everywhere = False
    """Whether every process of a run raises it, so that the first need say it alone."""


class NotFiniteError(RunError):
    """A loss is not finite, or larger than records can hold."""


class Stopped(Exception):
    """Ctrl-C or SIGTERM ended a command. The message says what is kept and how to go on; `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
