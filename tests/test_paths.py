"""Paths are `str` or `Path` wherever Python code gives one."""

import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import trainonce
from trainonce.data import DataSet, load_dataset
from trainonce.data.load import load_source
from trainonce.export.predict import open_classifier
from trainonce.models import MobileNetV3
from trainonce.recipes import load_recipe
from trainonce.report import read_groups, write_report
from trainonce.subnets import describe_subnet, read_subnet, verify_subnet, write_subnet

MakeNet = Callable[..., MobileNetV3]
MakeData = Callable[..., DataSet]

WITHIN = (
    *("files", "records", "run.checkpoint", "limits", "cli", "__main__", "training.state", "data.download"),
    *("data.formats", "data.listing", "data.stream", "data.published.load_entry", "export.integrity", "latency.log"),
    *("nn.native", "parallel"),
)
"""Modules, or functions, that only our own code calls."""


def functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """Every function and method of the library that a person may call."""
    for found in pkgutil.walk_packages(trainonce.__path__, "trainonce."):
        if found.name.removeprefix("trainonce.").startswith(WITHIN):
            continue
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != found.name:
                continue
            if inspect.isfunction(value):
                yield f"{found.name}.{name}", value
            elif inspect.isclass(value):
                for method, inner in vars(value).items():
                    function = inner.__func__ if isinstance(inner, classmethod | staticmethod) else inner
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{found.name}.{name}.{method}", function


def takes_paths_alone(hint: Any) -> bool:
    """Whether a type, or one inside it, takes `Path` but not `str`."""
    inner = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return (Path in inner and str not in inner) or any(takes_paths_alone(one) for one in inner if one is not Path)
    return hint is Path or any(map(takes_paths_alone, inner))


def test_the_reading_of_types() -> None:
    assert all(map(takes_paths_alone, (Path, Path | None, list[Path], tuple[int, Path | None])))
    assert not any(map(takes_paths_alone, (str, str | Path, Path | str | None, list[str | Path], int)))


def test_every_public_function_takes_both() -> None:
    import altair  # so that the annotations of what draws can be read

    wrong, seen = [], 0
    for name, function in functions():
        if name.removeprefix("trainonce.") in WITHIN:
            continue
        seen += 1
        hints = get_type_hints(function, localns={"alt": altair})
        wrong += [f"{name}({what})" for what, hint in hints.items() if what != "return" and takes_paths_alone(hint)]
    assert not wrong
    assert seen > 300


@pytest.mark.parametrize("kind", [str, Path])
def test_data_sets_and_recipes(tmp_path: Path, kind: type[str] | type[Path]) -> None:
    with pytest.raises(trainonce.UserError, match="does not exist: fetch"):
        load_dataset("mnist", data_dir=kind(tmp_path), download=False)
    np.savez(tmp_path / "x.npz", train_images=np.zeros((40, 8, 8), np.uint8), train_labels=np.arange(40) % 2)
    data = load_dataset(kind(tmp_path / "x.npz"))
    assert data.source.name_or_path == str(tmp_path / "x.npz")
    assert load_source(data.source, data_dir=kind(tmp_path)).fingerprint() == data.fingerprint()
    (tmp_path / "mine.toml").write_text('batch_size = 8\nphases = [{name="a", subnets=["largest"], epochs=1, lr=0.1}]')
    assert load_recipe(kind(tmp_path / "mine.toml")).name == "mine"


@pytest.mark.parametrize("kind", [str, Path])
def test_subnets_and_reports(
    make_net: MakeNet, make_data: MakeData, tmp_path: Path, kind: type[str] | type[Path]
) -> None:
    net, place = make_net().eval(), kind(tmp_path / "subnet")
    arch = net.space.smallest()
    network = net.extract(arch)
    write_subnet(place, network, describe_subnet(net, arch, make_data()))
    verify_subnet(place, network)
    assert read_subnet(place)[1].architecture == str(arch)
    assert open_classifier(place).classes == ("a", "b", "c")
    with pytest.raises(trainonce.UserError, match="holds no run and no study"):
        read_groups([place])
    write_report([], kind(tmp_path / "page.html"))
    assert (tmp_path / "page.html").exists()
