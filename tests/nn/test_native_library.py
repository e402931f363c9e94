"""Compiling the kernels, keeping them, and finding them damaged; and without an account or a compiler."""

import hashlib
import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.native import needs_native, run_script
from tests.support.warm_python import run_python

from trainonce.nn import native
from trainonce.nn.native.library import FLAGS, TUNED


def test_switched_off() -> None:
    assert run_script(TRAINONCE_NATIVE="0") == "TRAINONCE_NATIVE is 0"


def test_without_a_compiler(tmp_path: Path) -> None:
    assert "no C compiler" in run_script(PATH=str(tmp_path), CC="", TRAINONCE_CACHE=str(tmp_path))


def test_with_a_compiler_that_fails(tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'no room' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert "could not compile" in run_script(CC=str(broken), TRAINONCE_CACHE=str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled kernels, whole."""
    folder = tmp_path_factory.mktemp("built")
    assert run_script(TRAINONCE_CACHE=str(folder)) == "native"
    (path,) = folder.iterdir()
    return path


@pytest.fixture
def copier(built: Path, tmp_path: Path) -> Path:
    """A compiler that is quick: it copies what was compiled before, and writes its arguments into a file beside it."""
    compiler = tmp_path / "cc"
    compiler.write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && echo copier && exit\n'
        f'echo "$@" >>{tmp_path}/compiled\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'cp {built} "$2"\n'
    )
    compiler.chmod(0o755)
    return compiler


@needs_native
def test_compiled_once_and_kept(built: Path, copier: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        assert run_script(CC=str(copier), TRAINONCE_CACHE=str(cache)) == "native"
        (kept,) = cache.iterdir()
        assert kept.name.endswith(f"-{hashlib.sha256(built.read_bytes()).hexdigest()}.so")
        assert len((tmp_path / "compiled").read_text().splitlines()) == 1


def damages(content: bytes) -> Iterator[bytes]:
    """A file cut off, of zeros from somewhere on as after a loss of power, with more at its end, and with flipped bits.

    Loaded, a cut one ends the process by SIGBUS, an empty one is no library, and flipped bits may change numbers.
    """
    rng = random.Random(0)
    for length in (0, 1, 4096, len(content) // 2, len(content) - 1):
        yield content[:length]
    yield content[:8192] + bytes(len(content) - 8192)
    yield content + b"x"
    for _ in range(20):
        place = rng.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def used(times: int, files: list[Path], kept: Path, **environment: str) -> list[Any]:
    """What processes found that used the kernels: how each ended and what it said."""
    program = Path(__file__).parents[1] / "support" / "kernel_cache_run.py"
    done = subprocess.run(
        [sys.executable, str(program), str(kept), str(times), *map(str, files)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _ in ended] == [0] * (times * len(files))
    return [json.loads(said) for _, said in ended]


@needs_native
def test_damaged_kernels_are_compiled_anew_with_the_same_flags(built: Path, copier: Path, tmp_path: Path) -> None:
    environment = {"CC": str(copier), "TRAINONCE_CACHE": str(tmp_path / "cache")}
    assert run_script(**environment) == "native"
    (kept,) = (tmp_path / "cache").iterdir()
    files = []
    for number, content in enumerate(damages(built.read_bytes())):
        files.append(tmp_path / f"damage{number}")
        files[-1].write_bytes(content)
    for found in used(1, files, kept, **environment):
        assert found == [True, " ".join(TUNED[0]), "", [f"{kept} is damaged: it is compiled anew"]]
    assert list((tmp_path / "cache").iterdir()) == [kept]
    assert kept.read_bytes() == built.read_bytes()
    arguments = (tmp_path / "compiled").read_text().splitlines()
    assert len(arguments) == 1 + len(files)
    assert all(" ".join((*FLAGS, *TUNED[0])) in line for line in arguments)


@needs_native
def test_several_processes_may_find_the_cache_empty_or_damaged_at_once(
    built: Path, copier: Path, tmp_path: Path
) -> None:
    environment = {"CC": str(copier), "TRAINONCE_CACHE": str(tmp_path / "cache")}
    assert run_script(**environment) == "native"
    (kept,) = (tmp_path / "cache").iterdir()
    (tmp_path / "cut").write_bytes(built.read_bytes()[:5000])
    found = used(6, [tmp_path / "cut", tmp_path / "none"] * 5, kept, **environment)
    assert [one[:3] for one in found] == [[True, " ".join(TUNED[0]), ""]] * 60
    assert list((tmp_path / "cache").iterdir()) == [kept]


@needs_native
def test_a_slower_build_is_recorded_as_such(copier: Path, tmp_path: Path) -> None:
    """As by a compiler that does not know the processor."""
    copier.write_text(copier.read_text().replace("echo copier", "echo old").replace("while", REFUSING + "\nwhile"))
    script = "from trainonce.run.directory import provenance; print(provenance('cpu'))"
    environment = {"CC": str(copier), "TRAINONCE_CACHE": str(tmp_path / "cache")}
    done = run_python(script, environment=os.environ | environment)
    assert "'native_kernels': True, 'native_flags': '-fopenmp'}" in done.stdout


REFUSING = 'case "$*" in *=native*) exit 1;; esac'
WITHOUT_ACCOUNT = """
import pwd

def nobody(number):
    raise KeyError(number)

pwd.getpwuid = nobody
from trainonce.nn import native
print(native.remark())
"""


def said_without_account(temporary: Path, **environment: str) -> str:
    """What is said of the kernels to a user without an account, by a process without HOME."""
    unset = ("HOME", "XDG_CACHE_HOME", "TRAINONCE_CACHE")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    done = run_python(WITHOUT_ACCOUNT, environment=inherited | {"TMPDIR": str(temporary)} | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_native
class TestWithoutAPlaceToKeepThem:
    def test_they_are_kept_in_a_private_folder_for_a_while(self, copier: Path, tmp_path: Path) -> None:
        folder = tmp_path / f"trainonce-{os.getuid()}"
        said = f"The native kernels are kept in {folder} until that is cleared (there is no home directory)."
        for _ in range(2):
            assert said_without_account(tmp_path, CC=str(copier)) == said
            assert len(list(folder.iterdir())) == 1
            assert folder.stat().st_mode & 0o777 == 0o700
            assert len((tmp_path / "compiled").read_text().splitlines()) == 1

    def test_a_folder_that_others_can_write_is_not_used(self, copier: Path, tmp_path: Path) -> None:
        folder = tmp_path / f"trainonce-{os.getuid()}"
        folder.mkdir()
        folder.chmod(0o777)
        said = said_without_account(tmp_path, CC=str(copier))
        assert said.startswith("Without the native kernels, at about half the speed: ")
        assert said.endswith(f"{folder} is not this user's alone.")
        assert list(folder.iterdir()) == []

    def test_a_cache_that_cannot_be_made(self, copier: Path, tmp_path: Path) -> None:
        cache = copier / "cache"
        said = said_without_account(tmp_path, CC=str(copier), TRAINONCE_CACHE=str(cache))
        assert said.endswith(f"({cache}: Not a directory).")
        assert len(list((tmp_path / f"trainonce-{os.getuid()}").iterdir())) == 1


def test_the_kernels_compile_where_there_is_a_compiler() -> None:
    """Else every test here would be skipped, and everything be slow, without a word."""
    assert "could not compile" not in native.why_not()


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep what they keep")
RESIDENT = """
import os, pathlib, torch
from trainonce.nn import native

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

assert native.usable(torch.zeros(1)), native.remark()
torch.ones(1 << 16)  # by several threads, which take what they need now
empty = resident()

def grown():
    return resident() - empty
"""


def resident(code: str) -> list[int]:
    """The numbers that code prints after `RESIDENT`."""
    done = run_python(RESIDENT + code)
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


@needs_native
@needs_glibc
def test_large_tensors_are_given_back_to_the_system() -> None:
    held, left = resident("large = torch.ones(1 << 24); print(grown()); del large; print(grown())")
    assert held > 60 << 20
    assert left < 1 << 20


@needs_native
@needs_glibc
def test_large_tensors_are_kept_while_networks_are_scored() -> None:
    code = """
with native.large_maps_kept():
    large = torch.ones(1 << 24)
    del large
    print(grown())
print(grown())
"""
    inside, after = resident(code)
    assert inside > 60 << 20
    assert after < 1 << 20


@needs_native
@needs_glibc
def test_after_networks_were_scored_large_tensors_are_given_back() -> None:
    """Of none that was kept: the hole that one may leave on the heap holds the next, and its pages stay."""
    code = "with native.large_maps_kept(): pass\nlarge = torch.ones(1 << 24); del large; print(grown())"
    [left] = resident(code)
    assert left < 1 << 20
