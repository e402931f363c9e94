"""What the tests of the native kernels share."""

import os

import pytest
from tests.support.warm_python import run_python

from trainonce.nn import native

needs_native = pytest.mark.skipif(bool(native.why_not()), reason=f"no native kernels here: {native.why_not()}")
SCRIPT = "from trainonce.nn import native; print(native.why_not() or 'native')"


def run_script(**environment: str) -> str:
    done = run_python(SCRIPT, environment=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
