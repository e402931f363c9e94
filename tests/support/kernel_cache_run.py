"""Use the kernels in processes of their own, again and again: `python kernel_cache_run.py KEPT TIMES [FILE …]`.

For each FILE its bytes become those of KEPT, or KEPT is removed where there is no such file; then TIMES processes
use the kernels at once. Prints for each process, as JSON, how it ended and what it found.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from torch.nn import functional

from trainonce.nn import native


def use(said: int) -> None:
    """Compute with the kernels; write whether it is right, what they were compiled with, and every warning."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        weight, bias, mean, var = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
        want = functional.relu(functional.batch_norm(x, None, None, weight, bias, training=True))
        norm = native.Norm(weight, bias, mean, var)
        y = native.norm_act(x, norm, "relu", momentum=0.1, eps=1e-5)
    found = [
        bool(torch.allclose(y, want, atol=1e-5)),
        native.tuned(),
        native.remark(),
        [str(warning.message) for warning in seen],
    ]
    os.write(said, json.dumps(found).encode())
    os._exit(0)


kept, times = Path(sys.argv[1]), int(sys.argv[2])
for file in map(Path, sys.argv[3:]):
    if file.exists():
        kept.write_bytes(file.read_bytes())
    else:
        kept.unlink()
    processes = []
    for _ in range(times):
        heard, said = os.pipe()
        child = os.fork()
        if child == 0:
            use(said)
        os.close(said)
        processes.append((child, heard))
    for child, heard in processes:
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(json.dumps([ended, os.read(heard, 1 << 16).decode()]) + "\n")
        os.close(heard)
