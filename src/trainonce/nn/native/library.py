"""Compile `block.c` with the machine's own C compiler at first use, keep the result, and call it.

Where there is no compiler, or TRAINONCE_NATIVE=0, everything runs on torch's own operators instead.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from trainonce.files import private_folder, sync_directory, write_synced

SOURCE = Path(__file__).with_name("block.c")
PARTS = (SOURCE, *(SOURCE.with_name(f"{name}.h") for name in ("loops", "products", "shares", "images")))
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
TUNED = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ())  # the first that compiles
SWITCH = "TRAINONCE_NATIVE"
CACHE = "TRAINONCE_CACHE"
COMPILE_SECONDS = 120
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES, MAPPED_BYTES = 1 << 30, 1 << 24

_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float
BLOCK_NORMS = 3  # after the expansion, the depthwise convolution and the projection


class NormTensors(ctypes.Structure):
    """Where a batch norm's tensors are."""

    _fields_ = (("weight", _P), ("bias", _P), ("running_mean", _P), ("running_var", _P))


class Block(ctypes.Structure):
    """`Block` of block.c, which says what it means."""

    _fields_ = (
        ("images", _L),
        *((name, _I) for name in ("height", "width", "in_channels", "mid", "out", "squeezed")),
        *((name, _I) for name in ("whole_mid", "whole_squeezed", "kernel", "crop", "stride", "lead")),
        *((name, _I) for name in ("kind", "residual", "threads")),
        ("momentum", _F),
        ("eps", _F),
        *((name, _P) for name in ("expand_weight", "kernel_weight", "reduce_weight", "reduce_bias")),
        *((name, _P) for name in ("grow_weight", "grow_bias", "project_weight")),
        ("norms", NormTensors * BLOCK_NORMS),
    )


class Gradients(ctypes.Structure):
    """`Gradients` of block.c: where those of a block's weights go."""

    _fields_ = (
        *((name, _P) for name in ("expand_weight", "kernel_weight", "reduce_weight", "reduce_bias")),
        *((name, _P) for name in ("grow_weight", "grow_bias", "project_weight")),
        ("norm_weight", _P * BLOCK_NORMS),
        ("norm_bias", _P * BLOCK_NORMS),
    )


class Images(ctypes.Structure):
    """`Images` of images.h, which says what it means."""

    _fields_ = (
        ("pixels", _P),
        ("images", _L),
        *((name, _I) for name in ("channels", "height", "width", "threads")),
        *((name, _P) for name in ("columns", "rows", "brightness", "saturation", "grey", "mean", "std", "out")),
    )


class SideWeights(ctypes.Structure):
    """`SideWeights` of images.h, which says what it means."""

    _fields_ = (
        *((name, _I) for name in ("old", "new", "most")),
        *((name, _P) for name in ("first", "count", "weights")),
    )


_BLOCK = ctypes.POINTER(Block)
SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "matrix_product": (None, (_I, _P, _I, _I, _P, _I, _P, _I, _I, _I, _I, _I)),
    "norm_act_forward": (None, (_P, _L, _I, _I, ctypes.POINTER(NormTensors), _I, _F, _F, _P, _P, _I)),
    "norm_act_backward": (None, (_P, _P, _L, _I, _I, _P, _I, _P, _P, _P, _I)),
    "block_saved_floats": (_L, (_BLOCK,)),
    "block_forward": (None, (_BLOCK, _P, _P, _P)),
    "block_infer": (None, (_BLOCK, _P, _P)),
    "block_backward": (None, (_BLOCK, _P, _P, _P, ctypes.POINTER(Gradients), _P)),
    "vary_images": (None, (ctypes.POINTER(Images),)),
    "resize_images": (None, (ctypes.POINTER(SideWeights), _P, _L, _I, _P, _I)),
}
"""What each function of block.c returns and takes."""


class Kernels(NamedTuple):
    """The compiled kernels, ready to be called."""

    library: ctypes.CDLL
    tuned: tuple[str, ...]
    """The one of `TUNED` that they were compiled with, beside `FLAGS`."""
    elsewhere: str
    """Why they are not kept where they should be, and where instead; empty where they are."""


@cache
def load_kernels() -> ctypes.CDLL | None:
    """The kernels, compiled if they were not before; None where `why_not` says why they cannot be had."""
    built = _build()
    return built.library if isinstance(built, Kernels) else None


def why_not() -> str:
    """The reason for which the native kernels are not used on this machine; empty where they are."""
    built = _build()
    return built if isinstance(built, str) else ""


def tuned() -> str:
    """What the kernels were compiled with for this processor: the slower the fewer; empty where they are not used."""
    built = _build()
    return " ".join(built.tuned) if isinstance(built, Kernels) else ""


def remark() -> str:
    """What a person should hear of the kernels, in a sentence: not used, or not kept for the next time; or nothing."""
    built = _build()
    if isinstance(built, str):
        return f"Without the native kernels, at about half the speed: {built}."
    return built.elsewhere


@cache
def _build() -> Kernels | str:
    """The loaded kernels, or the reason for which there are none."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        return "no C compiler was found (cc, gcc or clang)"
    for tuned in TUNED:
        try:
            library, elsewhere = _loaded(compiler, (*FLAGS, *tuned))
        except subprocess.SubprocessError as error:
            reason = f"{compiler} could not compile the kernels: {getattr(error, 'stderr', '') or error}"
            continue
        except OSError as error:
            reason = f"the kernels could not be compiled, kept or loaded: {error}"
            continue
        for name, (gives, takes) in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = takes, gives
        _keep_freed_memory()
        return Kernels(library, tuned, elsewhere)
    return reason


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one: else it takes and clears some 500 pages anew every step.

    The largest maps are given back: kept, they leave holes that maps of another size do not fill.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        _give_back_from(MAPPED_BYTES)


def _give_back_from(size: int) -> None:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, size)


@contextmanager
def large_maps_kept() -> Iterator[None]:
    """Let glibc keep the largest maps, too, while networks are scored; what is left of them is given back at the end.

    Scoring makes a few maps of hundreds of images over and over: clearing their pages took nearly as long as all else.
    """
    if load_kernels() is None or platform.libc_ver()[0] != "glibc":
        yield
        return
    _give_back_from(KEPT_BYTES)
    try:
        yield
    finally:
        _give_back_from(MAPPED_BYTES)
        ctypes.CDLL(None).malloc_trim(0)


def _loaded(compiler: str, flags: tuple[str, ...]) -> tuple[ctypes.CDLL, str]:
    """The shared library for this source, compiler, flags and processor; compiled unless it is there already, whole.

    Also why it is not in the cache, where it cannot be: then it is in a folder of this user's for temporary files.
    """
    command = [compiler, *flags, str(SOURCE)]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=COMPILE_SECONDS).stdout
    made_from = (*(part.read_bytes() for part in PARTS), version, repr(command).encode(), _processor().encode())
    name = f"kernels-{hashlib.sha256(b'|'.join(made_from)).hexdigest()[:16]}"
    try:
        return ctypes.CDLL(str(_kept_or_built(cache_folder(), name, command))), ""
    except OSError as error:
        folder = private_folder()
        why = f"{error.filename}: {error.strerror}" if error.filename else error
        said = f"The native kernels are kept in {folder} until that is cleared ({why})."
        return ctypes.CDLL(str(_kept_or_built(folder, name, command))), said


def _kept_or_built(folder: Path, name: str, command: list[str]) -> Path:
    """The library of this name in a folder: a file with the sum of its bytes at the end of its name.

    One that has other bytes is damaged: loaded, it would end the process or give wrong numbers. The new one takes its
    place in one step: were it removed before, it could be what another process has just put there.
    Raises `OSError` where the folder cannot be written, and `subprocess.SubprocessError` where it does not compile.
    """
    damaged = []
    for kept in sorted(folder.glob(f"{name}-*.so")):
        if kept.is_file() and kept.name == _summed(name, kept.read_bytes()):  # no link that leads nowhere
            return kept
        warnings.warn(f"{kept} is damaged: it is compiled anew", stacklevel=2)
        damaged.append(kept)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # so that several processes may build at once
        built = Path(scratch, "kernels.so")
        subprocess.run(
            [*command, "-o", str(built), "-lm"], capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS
        )
        content = built.read_bytes()
        write_synced(built, content)
        target = folder / _summed(name, content)
        built.replace(target)
    for other in damaged:
        if other != target:
            other.unlink(missing_ok=True)
    sync_directory(folder)
    return target


def _summed(name: str, content: bytes) -> str:
    return f"{name}-{hashlib.sha256(content).hexdigest()}.so"


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again. Raises `OSError` where there is no home directory."""
    given, cache = os.environ.get(CACHE), os.environ.get("XDG_CACHE_HOME")
    if given or cache:
        return Path(given) if given else Path(cache or "", "trainonce")
    try:
        return Path.home() / ".cache" / "trainonce"
    except RuntimeError:
        raise FileNotFoundError("there is no home directory") from None


def _processor() -> str:
    """What tells this processor from another that may share the cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return " ".join(line for line in lines if line.startswith(("flags", "Features", "model name")))
