"""A part imports only from those above it in README's map, some are without torch, and nothing unpickles."""

import ast
from itertools import takewhile
from pathlib import Path

import pytest

import trainonce

SOURCE = Path(trainonce.__file__).parent

README = Path(__file__).parent.parent / "README.md"
PARTS = sorted({path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")} - {"__init__"})


def floors() -> list[str]:
    """The modules and packages that README's map names, from the floor up."""
    _, _, rest = README.read_text(encoding="utf-8").partition("\nsrc/trainonce/")
    lines = takewhile(lambda line: line.startswith("  "), rest.splitlines()[1:])
    return [line.split()[0].rstrip("/").removesuffix(".py") for line in lines]


FLOORS = floors()
WITHOUT_TORCH = (
    "errors",
    "version",
    "limits",
    "extras",
    "lazy",
    "files",
    "names",
    "records",
    "settings",
    "space",
    "recipes",
)
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "shelve", "marshal"}


def files_of(part: str) -> list[Path]:
    module = SOURCE / f"{part}.py"
    return [module] if module.exists() else sorted((SOURCE / part).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module named by an import anywhere in a file, with `from a import b` as `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts_imported(path: Path) -> set[str]:
    """The modules and packages of trainonce that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("trainonce.")} & set(PARTS)


def test_the_map_names_every_part_once() -> None:
    assert sorted(FLOORS) == PARTS


@pytest.mark.parametrize("part", PARTS)
def test_imports_go_down(part: str) -> None:
    for path in files_of(part):
        upward = {other for other in parts_imported(path) - {part} if FLOORS.index(other) >= FLOORS.index(part)}
        assert not upward, f"{path.relative_to(SOURCE)} imports {sorted(upward)}: not above it in README's map"


def test_tests_lie_as_the_source_does() -> None:
    """A room of tests for each package that has any; beside them what tests share, and what tests the benchmarks."""
    tests = Path(__file__).parent
    rooms = {path.parent.relative_to(tests).parts[0] for path in tests.rglob("test_*.py") if path.parent != tests}
    assert rooms - set(PARTS) <= {"benchmarks", "fuzzing"}
    long = [path.name for path in tests.rglob("*.py") if len(path.read_text(encoding="utf-8").splitlines()) > 500]
    assert long == [], "divide them by subject"


def test_the_reading_of_imports_sees_what_is_there() -> None:
    assert {"space", "recipes", "cost"} <= parts_imported(SOURCE / "sampling.py")
    assert "models" in parts_imported(SOURCE / "training" / "loop.py")


def test_training_knows_nothing_of_evaluation() -> None:
    found = {other for path in files_of("training") for other in parts_imported(path)}
    assert found.isdisjoint({"evaluation", "search", "subnets", "export", "lab", "report", "pipeline", "cli"})


def test_the_plain_network_stands_alone() -> None:
    """A copy of it travels with every subnet."""
    assert parts_imported(SOURCE / "nn" / "plain.py") == set()


def reached_from(part: str) -> set[Path]:
    """The files of a part and of every part that it imports, directly or through others."""
    seen: set[str] = set()
    todo = [part]
    while todo:
        seen.add(todo[-1])
        found = (other for path in files_of(todo.pop()) for other in parts_imported(path))
        todo += sorted(set(found) - seen)
    return {path for name in seen for path in files_of(name)}


def needs_torch(part: str) -> bool:
    return any(name.split(".")[0] == "torch" for path in reached_from(part) for name in imported(path))


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_parts_without_torch(part: str) -> None:
    assert not needs_torch(part)


def test_the_search_for_torch_finds_it_where_it_is() -> None:
    assert needs_torch("training")
    assert needs_torch("cost"), "through nn"


def loads_weights_only(call: ast.Call) -> bool:
    """Whether a call says `weights_only=True`, with which torch.load runs no code of the file."""
    return any(keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in call.keywords)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_unpickles(path: Path) -> None:
    assert {name.split(".")[0] for name in imported(path) - {"pickle.UnpicklingError"}}.isdisjoint(UNPICKLERS)
    assert "torch.load" not in imported(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    safe = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and loads_weights_only(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load") or node in safe
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle" or ast.unparse(node.value) == "False"
