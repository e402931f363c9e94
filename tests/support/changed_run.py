"""A run whose run.json says something else and whose newest checkpoint agrees, as if it had been trained so."""

from pathlib import Path
from typing import Any

from trainonce.records import to_json
from trainonce.run import checkpoint
from trainonce.run.directory import RunConfig


def configured(run: Path, config: dict[str, Any]) -> None:
    """Give a run these values of run.json."""
    (run / "run.json").write_bytes(to_json(config))
    found = checkpoint.load_latest(run / "checkpoints")
    assert found is not None
    identity = RunConfig.parse({k: v for k, v in config.items() if k != "sum"}, where="the test").identity()
    checkpoint.save(run / "checkpoints", found.step, found.tensors, {**found.state, "identity": identity})
