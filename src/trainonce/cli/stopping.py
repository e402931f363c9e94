"""How Ctrl-C and SIGTERM end a command: while modules are imported, while work can be saved, while it cannot."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trainonce.errors import Stopped


@contextmanager
def importing() -> Iterator[None]:
    """Inside, where modules are imported, Ctrl-C ends the process at once.

    An exception in the middle of an import would be shown by whatever it passes through. Whoever started this process
    and wants Ctrl-C to be ignored, or did something else about it, has their way. Rubbish is not collected: what is
    imported stays, and looking through it takes a fifth of the time.
    """
    before, collected = signal.getsignal(signal.SIGINT), gc.isenabled()
    ours = before is signal.default_int_handler
    gc.disable()
    if ours:
        signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        if collected:
            gc.enable()
        if ours:
            signal.signal(signal.SIGINT, before)


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(sys.stderr.fileno(), b"trainonce: stopped\n")
    os._exit(130)


class Stop:
    """The signal that asked to stop, if one did."""

    number: int | None = None


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Note SIGTERM and the first Ctrl-C instead of dying of them; a second Ctrl-C does interrupt."""
    stop = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        if stop.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stoppable(kept: Callable[[], str]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end the work at once: `kept` says in a sentence what is kept and how to go on."""
    stop = Stop()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        stop.number = stop.number or number
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {kept()}", 128 + (stop.number or signal.SIGINT)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
