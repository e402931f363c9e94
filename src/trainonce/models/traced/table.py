"""What of a network is elastic and what stays, as a table for a person."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainonce.models.traced.supernet import Traced


@dataclass(frozen=True)
class Elastic:
    """A choice: its values, and the share of the network's MACs that its smallest alone saves."""

    choice: str
    values: tuple[int, ...]
    saves: float
    source: str


@dataclass(frozen=True)
class Stays:
    """Channels that stay, and why; or, without channels, branches that do, or an operation that has no rule."""

    name: str
    channels: int | None
    reason: str
    source: str


def elastic_rows(net: Traced) -> list[Elastic]:
    """Every choice of the space, in its order."""
    largest = net.space.largest()
    whole = net.cost_of(largest).macs
    lines = {one.choice: one.line for one in net.layout.elastic_axes}
    lines |= {name: net.layout.residuals.stages[at].residuals[-1].out for at, name in net.layout.depths.items()}
    rows = []
    for choice in net.space.choices:
        least = net.space.build(lambda c, values, name=choice.name: values[0] if c.name == name else values[-1])  # type: ignore[misc]
        saves = 1 - net.cost_of(least).macs / whole
        rows.append(Elastic(choice.name, choice.values, saves, _source(net, lines.get(choice.name, ""))))
    return rows


def rigid_rows(net: Traced) -> list[Stays]:
    """Every axis that matrices make and that stays, then branches that stay, and every operation without a rule."""
    axes = [Stays(r.name, r.channels, r.reason, _source(net, r.line)) for r in net.layout.rigid]
    branches = [
        Stays(f"branches up to {out}", None, why, _source(net, out)) for out, why in net.layout.residuals.kept.items()
    ]
    unknown = net.layout.found.unknown
    return axes + branches + [Stays(out, None, reason, _source(net, out)) for out, reason in unknown.items()]


def table(net: Traced) -> str:
    """Both, in columns: what is elastic with its values, what stays with the reason, each with its place."""
    small, large = net.cost_of(net.space.smallest()), net.cost_of(net.space.largest())
    elastic = [
        (row.choice, " ".join(map(str, row.values)), f"-{row.saves:.1%} MACs", row.source) for row in elastic_rows(net)
    ]
    rigid = [
        (row.name, "" if row.channels is None else str(row.channels), row.reason, row.source) for row in rigid_rows(net)
    ]
    ends = (
        f"{net.space.count():,} subnets, {small.macs / 1e6:,.1f} to {large.macs / 1e6:,.1f} M MACs, "
        f"{small.params / 1e6:,.2f} to {large.params / 1e6:,.2f} M parameters"
    )
    return "\n".join([ends, "", "elastic", *_columns(elastic), "", "rigid", *_columns(rigid)])


def _source(net: Traced, line: str) -> str:
    return net.settings.origins[line].source if line in net.settings.origins else ""


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
