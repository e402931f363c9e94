"""Reading the subnets that were taken out of a run: what each scores, takes and does class by class. No weights."""

from dataclasses import dataclass
from pathlib import Path

from trainonce.errors import UserError
from trainonce.evaluation.evaluator import Score
from trainonce.evaluation.per_class import PerClass
from trainonce.export.certificate import FILE as CERTIFICATE
from trainonce.export.certificate import Certificate
from trainonce.files import is_there
from trainonce.latency.table import LatencyTable
from trainonce.names import printable
from trainonce.nn.kinds import read_spec
from trainonce.records import read_document
from trainonce.run.directory import RunDirectory
from trainonce.subnets.description import SubnetDescription


@dataclass(frozen=True, kw_only=True)
class TakenOut:
    """A subnet's directory in a run."""

    path: Path
    name: str
    arch: str
    macs: int
    params: int
    size: int | None
    """Bytes of its weights' file; None where that was not kept."""
    scores: dict[str, Score]
    """By split."""
    classes: tuple[str, ...]
    per_class: PerClass | None
    """On the split that it was last scored on class by class."""
    split: str
    """That split; empty where there is none."""
    images: Path | None = None
    """The folder of its run's images, where they came from one and it is there."""
    latency_ms: dict[str, float]
    """Milliseconds of one image, by what measured that: the targets of exported files, and latency tables."""


def read_taken(run: RunDirectory) -> list[TakenOut]:
    """The subnets in a run's `subnets`, by rising MACs.

    One without a test score that another was fine-tuned from is left out: the other took its place. Raises `UserError`
    that names a damaged file.
    """
    found = {
        path.parent: SubnetDescription.read(read_document(path)[0], where=str(path))
        for path in sorted(run.subnets.glob("*/config.json"))
    }
    replaced = {
        described.trained.finetuned.from_sha256
        for described in found.values()
        if described.trained and described.trained.finetuned
    }
    kept = {
        path: described
        for path, described in found.items()
        if "test" in (described.scores or {}) or (described.sha256 or {}).get("model.safetensors") not in replaced
    }
    taken = [_taken(run, path, described) for path, described in kept.items()]
    return sorted(taken, key=lambda one: (one.macs, one.name))


def _taken(run: RunDirectory, path: Path, described: SubnetDescription) -> TakenOut:
    classes = dict(described.per_class or {})
    split = str(classes.pop("split", ""))
    found = PerClass.parse(classes, where=f"{path / 'config.json'}, per_class") if split else None
    if found is not None and len(found.recall) != len(described.classes):
        raise UserError(f"{path / 'config.json'}, per_class: it is of another number of classes")
    weights = path / "model.safetensors"
    return TakenOut(
        path=path,
        name=printable(path.name),
        arch=described.architecture,
        macs=int(described.macs),
        params=int(described.params),
        size=weights.stat().st_size if is_there(weights) else None,
        scores={name: score.score() for name, score in (described.scores or {}).items()},
        classes=tuple(described.classes),
        per_class=found,
        split=split,
        images=_folder(run),
        latency_ms=_exported(path) | _by_tables(run, path, described),
    )


def _folder(run: RunDirectory) -> Path | None:
    path = Path(run.config().data.name_or_path)
    return path if path.name and path.is_dir() else None


def _exported(path: Path) -> dict[str, float]:
    certificates = [Certificate.read_file(file) for file in sorted(path.glob(f"export/*/{CERTIFICATE}"))]
    return {
        f"{one.target}, {one.precision}": float(one.latency_ms.exported)
        for one in certificates
        if one.latency_ms.exported is not None
    }


def _by_tables(run: RunDirectory, path: Path, described: SubnetDescription) -> dict[str, float]:
    """What the run's latency tables of one image say of it, those that are of its space."""
    found = {}
    for file in sorted(run.latency.glob("*.json")):
        table = LatencyTable.read(file)
        try:
            if table.batch == 1:
                found[f"table {file.stem}"] = table.predict_ms(read_spec(described.network, beside=path))
        except UserError:
            continue
    return found
