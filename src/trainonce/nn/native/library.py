"""Compile `kernels.c` with the machine's own C compiler at first use, keep the result, and call it.

Where there is no compiler, or TRAINONCE_NATIVE=0, everything runs on torch's own operators instead.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
TUNED = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ())  # the first that compiles
SWITCH = "TRAINONCE_NATIVE"
CACHE = "TRAINONCE_CACHE"
COMPILE_SECONDS = 120
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = 1 << 30

_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float


class Shape(ctypes.Structure):
    """The shape of a depthwise convolution; `crop` is the side of the kernel's centre that is used."""

    _fields_ = (
        ("images", _L),
        ("height", _I),
        ("width", _I),
        ("channels", _I),
        ("kernel", _I),
        ("crop", _I),
        ("stride", _I),
    )


SIGNATURES = {
    "norm_statistics": (_P, _L, _I, _P, _P, _P, _P, _F, _F, _P, _I),
    "affine": (_P, _L, _I, _I, _P, _I, _P, _P, _P, _I),
    "pool": (_P, _P, _L, _I, _I, _P, _I, _P, _I),
    "act_backward": (_P, _P, _L, _I, _I, _P, _I, _P, _P, _P, _P, _I),
    "norm_coefficients": (_P, _L, _I, _P, _P, _P, _P),
    "norm_backward": (_P, _P, _L, _I, _P, _P, _I),
    "depthwise": (_P, ctypes.POINTER(Shape), _P, _P, _I, _P, _I, _P, _I),
    "depthwise_backward": (_P, _P, _P, _P, ctypes.POINTER(Shape), _P, _P, _I, _P, _P, _P, _I),
}


@cache
def load_kernels() -> ctypes.CDLL | None:
    """The kernels, compiled if they were not before; None where `why_not` says why they cannot be had."""
    built = _build()
    return built if isinstance(built, ctypes.CDLL) else None


def why_not() -> str:
    """The reason for which the native kernels are not used on this machine; empty where they are."""
    built = _build()
    return built if isinstance(built, str) else ""


@cache
def _build() -> ctypes.CDLL | str:
    """The loaded library, or the reason for which there is none."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if compiler is None:
        return "no C compiler was found (cc, gcc or clang)"
    for tuned in TUNED:
        try:
            kernels = ctypes.CDLL(str(_compiled(compiler, (*FLAGS, *tuned))))
        except (OSError, subprocess.SubprocessError) as error:
            reason = f"{compiler} could not compile the kernels: {getattr(error, 'stderr', '') or error}"
            continue
        for name, types in SIGNATURES.items():
            function = getattr(kernels, name)
            function.argtypes, function.restype = types, None
        _keep_freed_memory()
        return kernels
    return reason


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one: else it takes and clears some 500 pages anew every step."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(option, KEPT_BYTES)


def _compiled(compiler: str, flags: tuple[str, ...]) -> Path:
    """The shared library for this source, compiler, flags and processor; compiled unless it is there already."""
    command = [compiler, *flags, str(SOURCE)]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=COMPILE_SECONDS).stdout
    made_from = (SOURCE.read_bytes(), version, repr(command).encode(), _processor().encode())
    folder = _cache_folder()
    target = folder / f"kernels-{hashlib.sha256(b'|'.join(made_from)).hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # so that several processes may build at once
            built = Path(scratch, "kernels.so")
            subprocess.run(
                [*command, "-o", str(built), "-lm"], capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS
            )
            built.replace(target)
    return target


def _cache_folder() -> Path:
    given = os.environ.get(CACHE)
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainonce"


def _processor() -> str:
    """What tells this processor from another that may share the cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return " ".join(line for line in lines if line.startswith(("flags", "Features", "model name")))
