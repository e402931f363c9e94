"""Processes that die before any of their file operations."""

import os
import sys
from collections.abc import Callable
from types import FrameType

DIED = 77
MODULES = ("posix", "io", "_io", "fcntl")
METHODS = ("write", "flush", "truncate", "close")
LOOKING = {
    *("fspath", "_path_normpath", "text_encoding", "getpid", "urandom", "WIFSTOPPED", "waitstatus_to_exitcode"),
    *("stat", "lstat", "fstat", "scandir", "listdir", "read", "lseek", "fsync"),
}
"""What changes no file as another process sees it: dying before it is dying before what comes next."""


def deaths(work: Callable[[], object], check: Callable[[], object]) -> int:
    """Do `work` in a child that dies before its n-th file operation, for n = 1, 2, … until one lives; how many died.

    Operations that only look are not counted.

    `check` runs after each: it looks at what is left, and brings back what was there before.
    """
    for n in range(1, 1000):
        child = os.fork()
        if child == 0:
            try:
                _live(work, n)
                os._exit(0)
            finally:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, DIED), code
        check()
        if code == 0:
            return n - 1
    raise AssertionError("it does not come to an end")


def _live(work: Callable[[], object], operations: int) -> None:
    left = operations

    def count(_frame: FrameType, event: str, called: object) -> None:
        nonlocal left
        if event != "c_call" or not _is_file_operation(called):
            return
        left -= 1
        if left == 0:
            os._exit(DIED)

    sys.setprofile(count)
    work()
    sys.setprofile(None)


def _is_file_operation(called: object) -> bool:
    """Whether a built-in function is one of the system's that changes files, or a method that writes to one."""
    owner, name = type(getattr(called, "__self__", None)).__module__, getattr(called, "__name__", "")
    if getattr(called, "__module__", None) in MODULES:
        return name not in LOOKING
    return owner == "_io" and name in METHODS
