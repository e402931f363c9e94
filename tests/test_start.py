"""The beginning of the command line: before torch is there, where the system is another, without a home directory."""

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainonce import UserError, load_dataset
from trainonce.__main__ import SPINS
from trainonce.cli.app import app
from trainonce.cli.stopping import importing

SLOW = "import sys, time\nsys.stdout.write('importing')\nsys.stdout.flush()\ntime.sleep(100)\n"
SCRIPT = "from trainonce.__main__ import main; main()"


@pytest.mark.parametrize("how", [("-m", "trainonce", "train"), ("-c", SCRIPT, "train")], ids=["module", "script"])
def test_ctrl_c_while_modules_are_imported(how: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(SLOW)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, *how],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.read(len("importing")) == "importing"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "trainonce: stopped\n"
    assert process.returncode == 130


SAYING = "import os, sys\nsys.exit(os.environ.get('GOMP_SPINCOUNT', 'as it is'))\n"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "as it is")],
)
def test_threads_wait_shortly_once_torch_is_imported(asked: dict[str, str], expected: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(SAYING)
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-m", "trainonce", "train"],
        env=plain | {"PYTHONPATH": str(tmp_path)} | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.strip() == expected


def test_rubbish_is_collected_again_after_imports() -> None:
    """Also where one fails; and not where it was not before."""
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


HEAVY = {"torch", "numpy", "scipy", "sklearn", "pandas", "PIL", "safetensors", "optuna", "altair"}
COMMANDS = [command.name for command in app.registered_commands]


def modules_after(arguments: list[str], folder: Path) -> set[str]:
    """The modules at the end of `trainonce ARGUMENTS`."""
    kept = folder / "modules"
    keep = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=open({str(kept)!r}, 'w'))); "
    named = "sys.argv[0] = 'trainonce'; "
    done = subprocess.run(
        [sys.executable, "-c", keep + named + SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(kept.read_text().split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["train", "--help"], ["latency", "--help"]])
def test_what_computes_nothing_imports_nothing_that_computes(arguments: list[str], tmp_path: Path) -> None:
    loaded = modules_after(arguments, tmp_path)
    assert "typer" in loaded
    assert not {name.split(".")[0] for name in loaded} & HEAVY


def test_training_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    """As torch's own optimizers do, when they are made and when they step."""
    short = ["--recipe", "spos", "--epochs", "0.1", "--width", "0.25"]
    loaded = modules_after(["train", "digits", *short, "--out", str(tmp_path / "run")], tmp_path)
    assert "torch.optim" in loaded
    assert "torch._dynamo" not in loaded


COMPLETE = """
import contextlib, io, json, os, sys
from trainonce.__main__ import main
sys.argv, said = ["trainonce"], {}
for words in json.loads(sys.stdin.read()):
    os.environ |= {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        main()
    said[words] = out.getvalue().split()
print(json.dumps({"said": said, "loaded": list(sys.modules)}))
"""


def test_nor_does_completion() -> None:
    """Of commands, and of each command's options."""
    expected = {"trainonce extr": "extract"} | {f"trainonce {command} --js": "--json" for command in COMMANDS}
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE],
        input=json.dumps(list(expected)),
        env=os.environ | {"_TRAINONCE_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert {words: word in found["said"][words] for words, word in expected.items()} == dict.fromkeys(expected, True)
    assert "typer" in found["loaded"]
    assert not {name.split(".")[0] for name in found["loaded"]} & HEAVY


def test_a_system_without_fcntl_is_a_sentence() -> None:
    """As Windows is: from Python the `UserError` of the first import says it."""
    without = "import sys; sys.modules['fcntl'] = None; "
    done = subprocess.run([sys.executable, "-c", without + SCRIPT, "list"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("trainonce: this system is not supported: run directories are locked with fcntl")
    assert len(done.stderr.splitlines()) == 1
    code = without + "import trainonce; trainonce.RunDirectory"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("trainonce.errors.UserError: this system is not supported")


NOBODY = """
import pwd

def nobody(number):
    raise KeyError(number)

pwd.getpwuid = nobody
"""


def test_a_user_without_a_home_directory(tmp_path: Path) -> None:
    """Altair, which draws, cannot even be imported without one."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", f"{NOBODY}{SCRIPT}", "train", "~/images", "--dry-run"],
        env=inherited | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    folder = tmp_path / f"trainonce-{os.getuid()}"
    said, refused = done.stderr.splitlines()
    assert said == f"There is no home directory: {folder} is used instead, until it is cleared."
    assert refused.startswith("trainonce: '~/images' is not a data set")
    assert done.returncode == 2
    code = f"{NOBODY}import os, trainonce.cli.app as cli; cli._stand_in_for_home(); import altair"
    subprocess.run([sys.executable, "-c", code], env=inherited | {"TMPDIR": str(tmp_path)}, check=True)


def test_the_home_directory_of_nobody() -> None:
    with pytest.raises(UserError, match=r"^~no-such-user/images names a home directory that is not there$"):
        load_dataset("~no-such-user/images")
