"""Files of weights: what is read, as it was written, and what is refused."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trainonce.errors import UserError
from trainonce.models.weights import check_weights, file_sha256, read_weights

NETWORK = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
STATE = {name: tensor.clone() for name, tensor in NETWORK.state_dict().items()}
FORMS: dict[str, Any] = {
    "a state dict": STATE,
    "inside of a checkpoint": {"epoch": 3, "state_dict": STATE},
    "beside numbers of numpy": {"best": np.float64(71.5), "last": np.int64(3), "state_dict": STATE},
    "of a wrapped network": {f"module.{name}": tensor for name, tensor in STATE.items()},
    "of a compiled network": {"model": {f"_orig_mod.{name}": tensor for name, tensor in STATE.items()}},
}


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("form", FORMS)
def test_what_torch_saved(form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form], tmp_path / "weights.pt")
    assert_same(read_weights(tmp_path / "weights.pt"))
    assert_same(read_weights(str(tmp_path / "weights.pt")))


@pytest.mark.parametrize("wrappers", ["p", "c", "pc", "cp", "cpc"])
def test_what_wrappers_put_before_all_names(wrappers: str, tmp_path: Path) -> None:
    """In parallel, compiled, and one in the other: as torch itself names the weights."""
    wrapped: Any = NETWORK
    for wrapper in wrappers:
        wrapped = nn.DataParallel(wrapped) if wrapper == "p" else torch.compile(wrapped, backend="eager")
    state = wrapped.state_dict()
    assert not state.keys() & STATE.keys()
    torch.save(state, tmp_path / "weights.pt")
    assert_same(read_weights(tmp_path / "weights.pt"))


def test_what_is_not_before_all_names_stays(tmp_path: Path) -> None:
    """Without it one would take the other's place."""
    state = {"module.weight": torch.ones(1), "_orig_mod.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt").keys() == state.keys()
    save_file({}, tmp_path / "none.safetensors")
    assert read_weights(tmp_path / "none.safetensors") == {}


def test_the_names_that_older_numpys_have(tmp_path: Path) -> None:
    """numpy.core became numpy._core: both are read, whatever numpy is installed."""
    path = tmp_path / "weights.pt"
    torch.save({"best": np.float64(71.5), "state_dict": STATE}, path)
    with zipfile.ZipFile(path) as written:
        files = {name: written.read(name) for name in written.namelist()}
    renamed = io.BytesIO()
    with zipfile.ZipFile(renamed, "w") as again:
        for name, content in files.items():
            again.writestr(name, content.replace(b"numpy._core", b"numpy.core") if "data.pkl" in name else content)
    path.write_bytes(renamed.getvalue())
    assert_same(read_weights(path))


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    assert_same(read_weights(tmp_path / "weights.safetensors"))


class Obeyed:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("obeyed"),)


@pytest.mark.parametrize("named", ["weights.pt", "weights.safetensors"])
def test_no_code_is_run(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "beside": Obeyed()}, named)
    with pytest.raises(UserError, match=named):
        read_weights(named)
    Path(named).write_bytes(pickle.dumps(Obeyed()))
    with pytest.raises(UserError, match=named):
        read_weights(named)
    assert not Path("obeyed").exists()


@pytest.mark.parametrize("named", ["weights.pt", "weights.safetensors"])
def test_damage(named: str, tmp_path: Path) -> None:
    path = tmp_path / named
    torch.save(STATE, path) if path.suffix == ".pt" else save_file(STATE, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no weights at all"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=named):
            read_weights(path)
    with pytest.raises(UserError, match="is not a file"):
        read_weights(tmp_path)


def test_what_is_no_state_dict(tmp_path: Path) -> None:
    for value in ([1, 2], {"lr": 0.1}, {}, {"w": torch.ones(1).expand(1000)}):
        torch.save(value, tmp_path / "weights.pt")
        with pytest.raises(UserError, match="holds no state dict"):
            read_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("3.bias"), "it lacks 3.bias"),
        (lambda state: state.update(more=torch.ones(1)), "it also has more"),
        (lambda state: state.update({"3.bias": torch.ones(5)}), r"3.bias is \(5,\) in it, not \(2,\)"),
        (lambda state: state.update({"3.bias": torch.tensor([1.0, torch.nan])}), "3.bias in it is not finite"),
    ],
)
def test_weights_that_do_not_fit(change: Any, match: str) -> None:
    state = dict(STATE)
    check_weights(STATE, state, "x is not a y")
    change(state)
    with pytest.raises(UserError, match=f"x is not a y: {match}"):
        check_weights(STATE, state, "x is not a y")


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert file_sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
