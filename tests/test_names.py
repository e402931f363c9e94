"""Names stay in their place, commands are read as they were meant, and a terminal obeys nothing that a name holds."""

import io
import random
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.text import Text
from tests.conftest import MakeData, MakeNet
from tests.support.command_line import trainonce

from trainonce.cli import display
from trainonce.cost.macs import Cost
from trainonce.errors import UserError
from trainonce.evaluation.population import Bucket
from trainonce.lab.measures.measure import _label
from trainonce.lab.studies.run_study import StudyDirectory
from trainonce.lab.studies.study import Arm, load_study
from trainonce.names import LONGEST_NAME, command, file_name, plain, printable
from trainonce.recipes import RECIPES, Recipe, load_recipe
from trainonce.report.sections.population import _medians
from trainonce.subnets import describe_subnet
from trainonce.subnets.card import _title

ELSEWHERE = [
    "x/../../../ESC",
    "..",
    ".",
    "",
    "/etc",
    "a/b",
    "a\\b",
    ".hidden",
    "-rf",
    "~",
    " a",
    "a ",
    "a\nb",
    "a\x00b",
]
SHOWN_OTHERWISE = ["\x1b[31mred", "a\x07", "\x9b2J", "a\u202eb", "\u2028", "\udce9", "x" * (LONGEST_NAME + 1)]


@pytest.mark.parametrize("name", [*RECIPES, "rss@ps-seconds", "größe (2)", "名前", "x" * LONGEST_NAME])
def test_names_that_can_be_a_files(name: str, tmp_path: Path) -> None:
    assert file_name(name) == name
    (tmp_path / f"digits-{name}-0").mkdir()


@pytest.mark.parametrize("name", [*ELSEWHERE, *SHOWN_OTHERWISE])
def test_names_that_cannot(name: str) -> None:
    with pytest.raises(UserError, match=r"^a name (has|becomes)[^\n\x1b\x9b]+$"):
        file_name(name)
    with pytest.raises(ValidationError, match="a name"):
        Recipe(name=name, about="x", phases=RECIPES["rss"].phases)
    with pytest.raises(ValidationError, match="a name"):
        Arm(name=name)
    with pytest.raises(UserError):
        StudyDirectory("study").run(name)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(name=st.text(st.characters() | st.sampled_from("./\\~-\x1b\u202e"), max_size=8))
def test_an_accepted_name_is_one_part_of_a_path_and_shown_as_it_is(name: str) -> None:
    try:
        file_name(name)
    except UserError:
        return
    assert Path("runs", name).resolve() == Path("runs").resolve() / name
    assert printable(name) == name


def test_a_recipe_writes_in_no_other_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    (inside / "mine.toml").write_text('name = "x/../../../ESC"\n[[phases]]\nname = "one"\nepochs = 1\n')
    trainonce("train", "digits", "--recipe", "mine.toml").refused(r"mine\.toml: name: a name becomes part of a path")
    study = 'name = "../../ESC"\n[[arms]]\nname = "a"\nrecipe = "rss"\n'
    (inside / "study.toml").write_text(study)
    trainonce("study", "study.toml", "digits").refused(r"study\.toml: name: a name becomes part of a path")
    (inside / "study.toml").write_text(study.replace("../../ESC", "fine").replace('"a"', '"../../../ESC"'))
    trainonce("study", "study.toml", "digits").refused(r"study\.toml: arms\.0\.name: a name becomes part of a path")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "mine.toml", "study.toml"]


def test_a_file_gives_its_name_where_it_can(tmp_path: Path) -> None:
    path = tmp_path / "the\x1b[2Jrecipe.toml"
    path.write_text('[[phases]]\nname = "one"\nepochs = 1\n')
    with pytest.raises(UserError, match="no control characters"):
        load_recipe(str(path))
    path = tmp_path / "my study.toml"
    path.write_text('[[arms]]\nname = "a"\nrecipe = "rss"\n')
    assert load_study(path).name == "my study"


WORDS = st.text(
    st.characters(exclude_characters="\0", codec="utf-8") | st.sampled_from(" '\"$`\\\n\x1b;&|*"), max_size=8
)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(words=st.lists(WORDS, min_size=1, max_size=4))
def test_a_shell_reads_a_command_as_it_was_meant(words: list[str]) -> None:
    script = f"printf '%s\\0' {command(*words)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words
    assert printable(command(*words)) == command(*words)


def test_a_path_is_no_option() -> None:
    assert command("trainonce", "evaluate", Path("-x")) == "trainonce evaluate ./-x"
    assert (
        command("trainonce", "evaluate", Path("a b"), "--out", "it's")
        == """trainonce evaluate 'a b' --out 'it'"'"'s'"""
    )


def test_the_next_commands_can_be_copied(tmp_path: Path) -> None:
    run = tmp_path / "it's $HOME; a run"
    small = ("--width", "0.25", "--batch-size", "256", "--device", "cpu", "--probes", "0")
    said = trainonce("train", "digits", "--recipe", "spos", "--epochs", "1", *small, "--out", run).out
    for verb, options in (("evaluate", ("--per-bucket", "1", "--calibration-images", "50")), ("extract", ())):
        words = shlex.split(said.split("Next: ")[1])
        assert words[:3] == ["trainonce", verb, str(run)]
        done = trainonce(*words[1:], *options)
        assert done.code == 0, done.err
        said = done.err
    assert len(list((run / "subnets").iterdir())) == 1


def test_a_terminal_obeys_no_name(tmp_path: Path) -> None:
    (tmp_path / "images" / "\x1b[31mred\x1b]0;title\x07").mkdir(parents=True)
    (tmp_path / "images" / "blue").mkdir()
    result = trainonce("train", tmp_path / "images")
    result.refused(r"\\x1b\[31mred\\x1b\]0;title\\x07|holds no images")
    assert "\x1b" not in result.err + result.out
    trainonce("train", "\x1b[31mnowhere").refused(r"'\\x1b\[31mnowhere' is not a data set")


def test_colours_of_our_own_stay() -> None:
    shown = io.StringIO()
    console = display._Printable(file=shown, force_terminal=True, color_system="standard", width=200)
    table = display.plain_table("recipe\x1b[5m", "about")
    table.add_row("\x9b31m\tred", Text("\x1b[2Jname", style="red"))
    console.print(table)
    console.print(Text.assemble(("trainonce:", "bold red"), " \x1b]0;title\x9c\nis no file"))
    text = shown.getvalue()
    assert "trainonce:\x1b[0m \\x1b]0;title\\x9c\nis no file" in text
    assert "\x1b[31m" in text
    rest = re.sub(r"\x1b\[(0|1|31|1;31)m", "", text)  # the end of a style, bold, red
    assert printable(rest) == rest


@given(st.floats(1e-9, 1e15), st.integers(1, 17))
def test_a_plain_number_has_no_exponent(number: float, digits: int) -> None:
    """And is what Python rounds it to, with one; of larger numbers all whole ones are kept."""
    said = plain(number, digits)
    assert re.fullmatch(r"\d+(\.\d*[1-9])?", said)
    assert float(said) == (round(number) if number >= 10**digits else float(f"{number:.{digits - 1}e}"))
    assert plain(np.float64(number), digits) == said


def test_more_than_a_thousand_million_have_no_exponent(
    make_net: MakeNet, make_data: MakeData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In what is said of a supernet, of devices beyond it, of a subnet, of a population's medians and of a probe."""
    net = make_net()
    smallest, other = net.space.smallest(), net.space.sample(random.Random(0))
    description = describe_subnet(net, smallest, make_data()) | {"macs": 1_234_000_000}
    monkeypatch.setattr(type(net), "cost_of", lambda *_: Cost(macs=1_234_000_000, params=5_678_000_000))
    display.say_family(net)
    display.say_unused(net, [2e9])
    said = " ".join(capsys.readouterr().err.split())
    assert "subnets of 1234 to 1234 M MACs, 5678 to 5678 M parameters" in said
    assert "No subnet has more than 1234 M MACs" in said
    assert _title(description) == "A subnet of 1234 million MACs"
    assert _label(net, other) == "1234 M"
    arm = SimpleNamespace(label="x", summaries=[SimpleNamespace(median=50.0, bucket=Bucket(1.234e9, 1e6))])
    info: Any = SimpleNamespace(arms=[arm])
    assert _medians(info) == "Medians of x: 50.0% at 1234 M."
