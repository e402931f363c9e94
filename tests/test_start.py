"""The beginning of the command line: before torch is there, where the system is another, without a home directory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainonce import UserError, load_dataset

SLOW = "import sys, time\nsys.stdout.write('importing')\nsys.stdout.flush()\ntime.sleep(100)\n"
SCRIPT = "from trainonce.__main__ import main; main()"


@pytest.mark.parametrize("how", [("-m", "trainonce", "list"), ("-c", SCRIPT, "list")], ids=["module", "script"])
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
