"""What the tests of the native kernels share."""

import os
import subprocess
import sys

import pytest

from trainonce.nn import native

needs_native = pytest.mark.skipif(bool(native.why_not()), reason=f"no native kernels here: {native.why_not()}")
SCRIPT = "from trainonce.nn import native; print(native.why_not() or 'native')"


def run_script(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
