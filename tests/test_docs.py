"""The documentation says what is so: its Python runs, its commands exist, and what is generated leaves nothing out."""

import ast
import re
import shutil
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import typer
from docs import generated
from tests.support.command_line import trainonce as trainonce_says

import trainonce
from trainonce.cli.app import app
from trainonce.recipes import RECIPES
from trainonce.records import UncheckedWarning, read_lines

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
SHORTER = {"scaled(0.05)": "scaled(0.002)", "scores=100": "scores=10"}
"""What is made shorter where a page's Python is run."""


def path_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[tuple[bool, str]]:
    """The code blocks of a page in a language: whether it is run, and the code."""
    for mark, found, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if found == language:
            yield not mark, code


WITH_PYTHON = [page for page in PAGES if any(blocks(page, "python"))]
RUN = [page for page in WITH_PYTHON if any(run for run, _ in blocks(page, "python"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the pages' Python runs: with the runs, the subnet, its ONNX file and the study that they name."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("reader")
        patch.chdir(path)
        options = ("--epochs", "1", "--width", "0.25", "--probes", "0", "--out", "runs/rss")
        assert trainonce_says("train", "digits", *options).code == 0
        assert trainonce_says("evaluate", "runs/rss", "--per-bucket", "1").code == 0
        assert trainonce_says("extract", "runs/rss", "--max-macs", "0.5", "--out", "runs/rss/subnets/ID").code == 0
        assert trainonce_says("export", "runs/rss/subnets/ID", "--to", "onnx").code == 0
        shutil.copy("runs/rss/subnets/ID/export/onnx/model.onnx", "model.onnx")
        for run in ("ps", "pets"):
            shutil.copytree("runs/rss", f"runs/{run}")
        shutil.copytree(ROOT / "docs" / "results" / "baseline-cifar10", "studies/baseline")
        yield path


@pytest.mark.parametrize("page", RUN[1:], ids=path_of)  # tests/test_public_face.py runs the README's
def test_python_that_can_run_runs(page: Path, folder: Path) -> None:
    """The blocks of a page one after the other, as they stand there, but for their lengths."""
    code = "\n".join(code for run, code in blocks(page, "python") if run)
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    assert Path.cwd() == folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for a reader they are no errors
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", WITH_PYTHON, ids=path_of)
def test_what_python_imports_is_there(page: Path) -> None:
    """Of blocks that are not run too."""
    for _, code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("trainonce"):
                for alias in node.names:
                    there = hasattr(import_module(str(node.module)), alias.name)
                    assert there or import_module(f"{node.module}.{alias.name}")


def command_named(words: list[str]) -> Any:
    """The command that these words begin with, as typer has it. Raises `AssertionError` where there is none."""
    found: Any = typer.main.get_command(app)
    for word in words:
        if not isinstance(found, typer.core.TyperGroup):
            break
        context = found.make_context("trainonce", [], resilient_parsing=True)
        assert word in found.list_commands(context), f"there is no command {word}"
        found = found.get_command(context, word)
    return found


def command_lines(page: Path) -> Iterator[list[str]]:
    """What stands after `trainonce` in the command lines of a page, without what is behind `#`."""
    for language in ("", "sh", "console"):
        for _, code in blocks(page, language):
            for line in code.replace("\\\n", " ").splitlines():
                if found := re.search(r"(?:^|-m )trainonce (.*)", line.partition("#")[0]):
                    yield found[1].split()


@pytest.mark.parametrize("page", [page for page in PAGES if any(command_lines(page))], ids=path_of)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in command_lines(page):
        command = command_named([word for word in words if not word.startswith("-")])
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} - known == set(), words


def test_the_watch_over_commands_sees_them() -> None:
    assert sum(1 for page in PAGES for _ in command_lines(page)) > 50
    with pytest.raises(AssertionError, match="no command trian"):
        command_named(["trian"])


def test_what_is_looked_for_is_where_the_page_says() -> None:
    text = (ROOT / "docs" / "architecture" / "where.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+)\.py:(\w+)`", text)
    assert len(named) >= 10 == len(re.findall(r"^[A-Z].*\?$", text, re.MULTILINE))
    for module, name in named:
        assert hasattr(import_module(f"trainonce.{module.replace('/', '.')}"), name), f"{module}.py:{name}"


NAMED = re.compile(r"`(trainonce(?:\.\w+)+)(?:\([^`]*\))?`")
NO_NAMES = {"trainonce.json", "trainonce.train"}
"""A file, and what a decision says that there is not."""


@pytest.mark.parametrize("page", [page for page in PAGES if NAMED.search(page.read_text("utf-8"))], ids=path_of)
def test_dotted_names_are_there(page: Path) -> None:
    """`trainonce.a.b` is a module, or something in one."""
    for name in set(NAMED.findall(page.read_text(encoding="utf-8"))) - NO_NAMES:
        resolve_name(name)


def test_what_is_generated_leaves_nothing_out() -> None:
    assert all(f"| `{name}` |" in generated.recipes_table() for name in RECIPES)
    assert all(f"## {name}\n" in generated.public_face() for name in trainonce.__all__ if name != "__version__")
    text = generated.commands()
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for name in group.list_commands(group.make_context("trainonce", [], resilient_parsing=True)):
        assert f"## trainonce {name}" in text
    assert "`--max-latency <str>`\n: Most time for one image" in text
    with pytest.raises(KeyError):
        generated.filled("<!-- generated: nothing -->")


def test_pages_ask_for_what_can_be_generated() -> None:
    filled = [page for page in PAGES if generated.filled(page.read_text(encoding="utf-8")) != page.read_text("utf-8")]
    assert {page.name for page in filled} == {"commands.md", "python.md", "recipes.md"}


def _anchor(heading: str) -> str:
    """What a link to a heading is called: its words in small letters, joined by hyphens."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def test_links_between_pages_lead_to_files_and_sections() -> None:
    links = 0
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
            place = page.parent / target if target else page
            if "reference" in place.parts:
                continue  # is generated
            assert place.exists(), (page.name, target)
            links += 1
            if anchor:
                headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert anchor in map(_anchor, headings), (page.name, target, anchor)
    assert links > 100


def test_paths_of_the_architecture_pages_are_there() -> None:
    """`room/file.py` is a file of src/trainonce or of the repository, and `room/file.py:name` has that name in it."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "architecture").glob("*.md"))
    found = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", text)
    assert sum(1 for _, name in found if name) > 10
    for path, name in found:
        (place,) = [root / path for root in (ROOT / "src" / "trainonce", ROOT) if (root / path).exists()]
        assert re.search(rf"\b(def|class) {name}\b" if name else "", place.read_text(encoding="utf-8")), (path, name)


def test_lines_of_results_are_whole() -> None:
    files = sorted(ROOT.glob("docs/results/**/*.jsonl"))
    assert len(files) > 20
    for path in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncheckedWarning)  # of before there were sums
            assert list(read_lines(path)), path
