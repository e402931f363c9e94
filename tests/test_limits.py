"""How much memory there is, read from files as Linux and its containers write them; and saying no beyond it."""

from pathlib import Path

import pytest

from trainonce import limits
from trainonce.errors import UserError
from trainonce.limits import memory_bytes, refuse_beyond_memory

MEMINFO = "MemTotal:  16000 kB\nMemFree:  100 kB\nMemAvailable:  8000 kB\nSwapTotal: 0 kB\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of 8,000 KiB available whose groups have no limits."""
    put(tmp_path, "meminfo", MEMINFO)
    put(tmp_path, "self", "0::/a.slice/b.scope\n")
    for name, file in (("_MEMINFO", "meminfo"), ("_OWN_CGROUPS", "self"), ("_CGROUPS", "cgroup")):
        monkeypatch.setattr(limits, name, tmp_path / file)
    return tmp_path


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_what_is_available_where_no_group_has_a_limit(system: Path) -> None:
    assert memory_bytes() == 8000 * 1024
    put(system, "cgroup/memory.max", "max\n")
    put(system, "cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_bytes() == 8000 * 1024


@pytest.mark.parametrize("where", ["", "a.slice/", "a.slice/b.scope/"])
def test_the_limit_of_a_group_or_of_one_above_it(system: Path, where: str) -> None:
    put(system, f"cgroup/{where}memory.max", "5000000\n")
    put(system, "cgroup/other.slice/memory.max", "1000\n")
    assert memory_bytes() == 5_000_000


@pytest.mark.parametrize("where", ["", "docker/1/"])
def test_groups_of_version_1(system: Path, where: str) -> None:
    put(system, "self", "12:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/1\n1:name=systemd:/y\n0::/\n")
    put(system, f"cgroup/memory/{where}memory.limit_in_bytes", "3000000\n")
    assert memory_bytes() == 3_000_000


def test_a_limit_beyond_the_machine_is_none(system: Path) -> None:
    put(system, "cgroup/memory.max", str(10**12))
    assert memory_bytes() == 8000 * 1024


def test_elsewhere_all_that_the_machine_has(system: Path) -> None:
    (system / "meminfo").unlink()
    (system / "self").unlink()
    assert memory_bytes() > 10**8


def test_this_machine() -> None:
    assert 10**8 < memory_bytes() < 10**14


def test_the_refusal_says_both_sizes(system: Path) -> None:
    refuse_beyond_memory(8000 * 1024, "this")
    with pytest.raises(UserError, match=r"^this would take 8\.19 MB of memory, and 8\.19 MB are there$"):
        refuse_beyond_memory(8000 * 1024 + 1, "this")
    with pytest.raises(UserError, match=r"^that would take 12,000,000 TB of memory"):
        refuse_beyond_memory(12 * 10**18, "that")
