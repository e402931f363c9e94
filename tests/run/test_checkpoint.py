"""Checkpoints: exact, checksummed, without pickle, and whole or not there."""

import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.dying import deaths
from torch import Tensor

from trainonce.errors import RunError, UserError
from trainonce.files import write_synced
from trainonce.records import plain_json
from trainonce.run import checkpoint
from trainonce.run.checkpoint import KEEP, DamagedCheckpoint, load, load_latest, save

FILES = ("MANIFEST", "optimizer.safetensors", "state.json", "weights.safetensors")
Damaged = Callable[[bytes], st.SearchStrategy[bytes]]


def tensors(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weights": {"conv": torch.randn(4, 3, 2, 2, generator=generator), "count": torch.tensor(7)},
        "optimizer": {"conv": torch.randn(4, 3, 2, 2, generator=generator)},
    }


def save_steps(folder: Path, *steps: int) -> list[Path]:
    return [save(folder, step, tensors(step), {"step": step, "about": f"step {step}"}) for step in steps]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


class TestSaved:
    def test_every_tensor_comes_back_bit_for_bit(self, tmp_path: Path) -> None:
        base = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0))
        given_tensors = {
            "float": base,
            "channels last": base.contiguous(memory_format=torch.channels_last),
            "slice": base[:, 1:4, ::2],
            "learned": torch.nn.Parameter(base[0].clone()),
            "half": base.to(torch.bfloat16),
            "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
            "whole": torch.tensor(2**62),
            "empty": torch.empty(0, 3),
        }
        found = load(save(tmp_path, 12, {"all": given_tensors}, {"step": 12, "x": [1.5, None]}))
        assert (found.step, found.state) == (12, {"step": 12, "x": [1.5, None]})
        assert set(found.tensors) == {"all"}
        assert set(found.tensors["all"]) == set(given_tensors)
        for name, tensor in given_tensors.items():
            read = found.tensors["all"][name]
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert read.flatten().view(torch.uint8).equal(tensor.detach().flatten().view(torch.uint8)), name

    def test_the_files_are_plain_safetensors_and_json(self, tmp_path: Path) -> None:
        path = save(tmp_path, 3, tensors(), {"step": 3})
        assert path.name == "step-000003"
        assert sorted(p.name for p in path.iterdir()) == list(FILES)
        assert json.loads((path / "state.json").read_text()) == {"step": 3}
        content = (path / "weights.safetensors").read_bytes()  # read by hand: length, JSON header, raw numbers
        (length,) = struct.unpack("<Q", content[:8])
        header: dict[str, Any] = json.loads(content[8 : 8 + length])
        assert header["conv"]["dtype"] == "F32"
        start, end = header["conv"]["data_offsets"]
        raw = np.frombuffer(content[8 + length :][start:end], dtype="<f4").reshape(header["conv"]["shape"])
        assert (raw == tensors()["weights"]["conv"].numpy()).all()

    def test_the_manifest_holds_the_sums_and_is_written_last(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[Path] = []

        def write(path: Path, content: bytes) -> None:
            written.append(path)
            write_synced(path, content)

        monkeypatch.setattr(checkpoint, "write_synced", write)
        path = save(tmp_path, 3, tensors(), {"step": 3})
        sums = {f: hashlib.sha256((path / f).read_bytes()).hexdigest() for f in FILES[1:]}
        assert json.loads((path / "MANIFEST").read_text()) == sums
        assert written[-1].name == "MANIFEST"
        assert {p.parent.name for p in written} == {".step-000003.partial"}  # under another name until whole

    def test_the_newest_are_kept_also_beyond_six_digits(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 1, 2, 999_999, 1_000_000)
        assert KEEP == 2
        assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
        latest = load_latest(tmp_path)
        assert latest is not None
        assert latest.step == 1_000_000

    def test_a_step_saved_again_is_replaced(self, tmp_path: Path) -> None:
        save(tmp_path, 5, tensors(0), {"step": 5, "n": 0})
        save(tmp_path, 5, tensors(1), {"step": 5, "n": 1})
        found = load(tmp_path / "step-000005")
        assert found.state["n"] == 1
        assert found.tensors["weights"]["conv"].equal(tensors(1)["weights"]["conv"])

    def test_none_where_there_is_none(self, tmp_path: Path) -> None:
        assert load_latest(tmp_path / "nothing") is None
        assert load_latest(tmp_path) is None

    def test_half_written_and_foreign_directories_are_passed_over(self, tmp_path: Path) -> None:
        save_steps(tmp_path, 1)
        (tmp_path / ".step-000009.partial").mkdir()
        (tmp_path / ".step-000009.partial" / "state.json").write_text('{"step": 9}')
        (tmp_path / "step-000008.bak").mkdir()
        (tmp_path / "step-old").mkdir()
        latest = load_latest(tmp_path)
        assert latest is not None
        assert latest.step == 1
        save_steps(tmp_path, 9)  # a later save takes the half-written one's place
        assert load(tmp_path / "step-000009").tensors["weights"]["conv"].equal(tensors(9)["weights"]["conv"])
        assert not (tmp_path / ".step-000009.partial").exists()


def test_a_writer_that_dies_over_the_only_checkpoint_leaves_it_or_the_new_one(tmp_path: Path) -> None:
    """As a run does that is stopped at the step at which it was resumed: the same step is written again."""
    found = []

    def check() -> None:
        newest = load_latest(tmp_path)
        assert newest is not None
        found.append(newest.state["which"])
        save(tmp_path, 1, tensors(), {"step": 1, "which": "old"})
        assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"]

    save(tmp_path, 1, tensors(), {"step": 1, "which": "old"})
    assert deaths(lambda: save(tmp_path, 1, tensors(), {"step": 1, "which": "new"}), check) > 20
    assert set(found) == {"old", "new"}


class TestDamaged:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("how", ["deleted", "truncated", "emptied", "flipped"])
    def test_damage_to_the_newest_falls_back_with_a_warning(self, tmp_path: Path, name: str, how: str) -> None:
        _, newest = save_steps(tmp_path, 1, 2)
        file = newest / name
        content = file.read_bytes()
        if how == "deleted":
            file.unlink()
        elif how == "flipped":
            flip(file, len(content) // 2)
        else:
            file.write_bytes(b"" if how == "emptied" else content[:-1] if name != "MANIFEST" else content[:-3])
        with pytest.raises(DamagedCheckpoint, match=r"step-000002.* is damaged"):
            load(newest)
        with pytest.warns(UserWarning, match=r"step-000002.* is damaged.*; using the one before it"):
            found = load_latest(tmp_path)
        assert found is not None
        assert found.step == 1
        assert found.tensors["weights"]["conv"].equal(tensors(1)["weights"]["conv"])

    def test_every_flipped_bit_is_found(self, tmp_path: Path) -> None:
        (path,) = save_steps(tmp_path, 1)
        for name in FILES[1:]:
            for position in range(0, (path / name).stat().st_size, 7):
                flip(path / name, position)
                with pytest.raises(DamagedCheckpoint):
                    load(path)
                flip(path / name, position)
        assert load(path).step == 1

    def test_all_damaged_is_a_sentence(self, tmp_path: Path) -> None:
        for path in save_steps(tmp_path, 1, 2):
            (path / "weights.safetensors").unlink()
        with (
            pytest.warns(UserWarning, match="step-000002"),
            pytest.raises(UserError, match=r"step-000001 is damaged: weights.safetensors is missing"),
        ):
            load_latest(tmp_path)

    @pytest.mark.parametrize("left_out", ["state.json", "weights.safetensors"])
    def test_a_manifest_that_forgets_a_file_is_damage(self, tmp_path: Path, left_out: str) -> None:
        (path,) = save_steps(tmp_path, 1)
        sums = json.loads((path / "MANIFEST").read_text())
        del sums[left_out]
        (path / "MANIFEST").write_bytes(plain_json(sums))
        with pytest.raises(DamagedCheckpoint, match=f"{left_out} is missing or not in its MANIFEST"):
            load(path)

    @settings(max_examples=150, deadline=None)
    @given(data=st.data(), name=st.sampled_from(FILES), signed=st.booleans())
    def test_fuzz(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        damaged: Damaged,
        data: st.DataObject,
        name: str,
        signed: bool,
    ) -> None:
        """Any bytes in any file: read as they were, or `DamagedCheckpoint`. `signed` fixes the checksum up too."""
        path = tmp_path_factory.getbasetemp() / "fuzzed" / "step-000001"
        if not path.exists():
            save_steps(path.parent, 1)
        before = {f: (path / f).read_bytes() for f in FILES}
        changed = data.draw(damaged(before[name]))
        try:
            (path / name).write_bytes(changed)
            if signed and name != "MANIFEST":
                sums = json.loads(before["MANIFEST"]) | {name: hashlib.sha256(changed).hexdigest()}
                (path / "MANIFEST").write_bytes(plain_json(sums))
            try:
                found = load(path)
            except DamagedCheckpoint:
                return
            # Accepted: nothing that the checksums cover has changed, or they were changed along with it.
            assert signed or found.state == json.loads(before["state.json"])
            if not signed:
                assert found.tensors["weights"]["conv"].equal(tensors(1)["weights"]["conv"])
                assert name == "MANIFEST" or changed == before[name]
        finally:
            for file, content in before.items():
                (path / file).write_bytes(content)


class TestDiskRefuses:
    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").write_text("a file where the folder belongs")
        with pytest.raises(RunError, match=r"cannot write the checkpoint .*step-000001: .*kept so far: none"):
            save_steps(tmp_path / "checkpoints", 1)

    def test_a_full_disk(self, tmp_path: Path) -> None:
        """In a process whose files may not grow past a limit, as on a full disk."""
        command = [sys.executable, "-m", "tests.support.disk_full", str(tmp_path)]
        root = Path(__file__).parents[2]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=120)
        found = json.loads(result.stdout)
        assert found["save"] == (
            f"cannot write the checkpoint {tmp_path}/saved/step-000002: File too large; "
            "checkpoints kept so far: step-000001"
        )
        assert found["saved"] == ["step-000001"]
        assert load(tmp_path / "saved" / "step-000001").tensors["weights"]["big"].equal(torch.zeros(1000))
        # A training run whose second half meets the full disk ...
        assert found["train"].startswith(f"cannot write the checkpoint {tmp_path}/run/checkpoints/step-000006: ")
        assert found["checkpoints"] == ["step-000004", "step-000005"]
        assert found["metrics"] == [1, 2, 3, 4, 5, 6]
        # ... one whose line of metrics does ...
        assert found["metrics refused"].startswith(f"cannot write {tmp_path}/run/metrics.jsonl: File too large")
        # ... and both go on afterwards as if nothing had been.
        assert found["equal"] is True
        assert found["metrics afterwards"] == [1, 2, 3, 4, 5, 6, 7, 8]
