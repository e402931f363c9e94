"""A search space as a value: named choices, and the architectures that they make.

Nothing here knows of networks or of torch. A choice may depend on an earlier one, its parent: for each
value of the parent it says which of its values are open, and none means that the choice does not exist.
That one rule carries elastic depth (a block's choices exist only where the depth reaches the block) and
compound coupling (a depth fixes the expand ratio), so that equal networks are equal values.
"""

import hashlib
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

from trainonce.errors import UserError

ROLES = ("resolution", "depth", "width", "kernel")
"""What a choice can be of a network: the side of its input, how many blocks, how many channels inside, how large a
kernel."""

OTHER_NAMES = {"kernel_size": "kernel", "expand_ratio": "width"}
"""What choices of a role are called in the literature of MBConv networks, and roles in recipes of earlier versions."""

UNEVEN = 0.15
"""How far from the share of its role a choice of an even draw may lie."""

Over = Literal["choices", "subnets"]
"""What a uniform draw is uniform over: the values of each choice, or the distinct subnets."""


@dataclass(frozen=True, slots=True)
class Architecture(Mapping[str, int]):
    """One subnet's values, by the names of the choices that exist in it.

    Frozen, hashable, and equal exactly when the subnets are equal. `str()` gives the short text form
    that `SearchSpace.parse` reads back, for example `d2.k3e6.k7e4_d3.k5e3.k5e3.k3e6`: stages are divided
    by `_`, blocks by `.`, and a value is led by the first letter of its choice.
    """

    pairs: tuple[tuple[str, int], ...]

    def __getitem__(self, name: str) -> int:
        for key, value in self.pairs:
            if key == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __hash__(self) -> int:
        return hash(self.pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.pairs == other.pairs

    def __str__(self) -> str:
        text = ""
        group: list[str] = []
        for name, value in self.pairs:
            *here, last = name.split(".")
            if text and here[:1] != group[:1]:
                text += "_"
            elif text and here != group:
                text += "."
            text += f"{last[0]}{value}"
            group = here
        return text

    def __repr__(self) -> str:
        return f"Architecture({str(self)!r})"

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name the architecture, for file names."""
        return hashlib.blake2b(repr(self.pairs).encode(), digest_size=6).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A named choice among whole numbers.

    `name` is dotted (`stage2.block3.kernel_size`): its first part groups choices into a stage, its
    middle into a block. With a `parent`, `allowed` gives the open values for each value of the parent;
    a value of the parent that is absent from `allowed` means that the choice does not exist there.
    """

    name: str
    values: tuple[int, ...]
    parent: str | None = None
    allowed: Mapping[int, tuple[int, ...]] | None = None
    role: str | None = None
    """Which of `ROLES` it has: what recipes call it by in every family. By default what its name ends with, if that
    is one, or one of `OTHER_NAMES`."""

    def __post_init__(self) -> None:
        if not self.values or list(self.values) != sorted(set(self.values)) or min(self.values) < 0:
            raise UserError(f"{self.name}: the values must be distinct, rising and not negative: {self.values}")
        if (self.parent is None) != (self.allowed is None):
            raise UserError(f"{self.name}: `parent` and `allowed` go together")
        by_name = OTHER_NAMES.get(self.last_name, self.last_name)
        if self.role is None and by_name in ROLES:
            object.__setattr__(self, "role", by_name)
        if self.role is not None and self.role not in ROLES:
            raise UserError(f"{self.name}: the role {self.role!r} is none of {', '.join(ROLES)}")
        if self.allowed is not None:
            for values in self.allowed.values():
                if not values or list(values) != sorted(set(values)) or not set(values) <= set(self.values):
                    raise UserError(f"{self.name}: allowed values {values} are not among {self.values}")

    def __hash__(self) -> int:
        return hash((self.name, self.values, self.parent))

    @property
    def last_name(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]

    def open_values(self, parent_value: int | None) -> tuple[int, ...]:
        """The values open where the parent has `parent_value` (None: it does not exist or there is none)."""
        if self.allowed is None:
            return self.values
        return () if parent_value is None else self.allowed.get(parent_value, ())


@dataclass(frozen=True)
class SearchSpace:
    """An ordered tuple of choices; parents come before the choices that depend on them."""

    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        seen: dict[str, set[int]] = {}
        for choice in self.choices:
            if not re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)*", choice.name) or choice.name in seen:
                raise UserError(f"choice name {choice.name!r} is not a dotted name or stands twice")
            if choice.parent is not None and choice.parent not in seen:
                raise UserError(f"{choice.name}: its parent {choice.parent!r} must come before it")
            if choice.parent is not None and not set(choice.allowed or ()) <= seen[choice.parent]:
                raise UserError(f"{choice.name}: `allowed` names values that {choice.parent} does not have")
            seen[choice.name] = set(choice.values)

    def __getitem__(self, name: str) -> Choice:
        """The choice of that name. Raises `UserError` that lists the names."""
        try:
            return self._by_name[name]
        except KeyError:
            raise UserError(f"no choice {name!r}; the choices are {', '.join(self._by_name)}") from None

    @cached_property
    def _by_name(self) -> dict[str, Choice]:
        return {choice.name: choice for choice in self.choices}

    def build(self, pick: Callable[[Choice, tuple[int, ...]], int]) -> Architecture:
        """The architecture that `pick(choice, open values)` makes, asked in order for each that exists."""
        values: dict[str, int] = {}
        for choice in self.choices:
            open_values = choice.open_values(values.get(choice.parent) if choice.parent else None)
            if open_values:
                values[choice.name] = pick(choice, open_values)
        return Architecture(tuple(values.items()))

    def architectures(self) -> Iterator[Architecture]:
        """Every architecture, in the order of its choices' values. Count them first: `count()`."""

        def grown(values: dict[str, int], left: Sequence[Choice]) -> Iterator[Architecture]:
            if not left:
                yield Architecture(tuple(values.items()))
                return
            open_values = left[0].open_values(values.get(left[0].parent) if left[0].parent else None)
            for value in open_values:
                yield from grown({**values, left[0].name: value}, left[1:])
            if not open_values:
                yield from grown(values, left[1:])

        return grown({}, self.choices)

    def largest(self) -> Architecture:
        """The architecture with the largest value of every choice."""
        return self.build(lambda _, values: values[-1])

    def smallest(self) -> Architecture:
        """The architecture with the smallest value of every choice."""
        return self.build(lambda _, values: values[0])

    def sample(self, rng: random.Random, *, over: Over = "choices") -> Architecture:
        """Draw one architecture with `rng`.

        `over="choices"` draws each existing choice uniformly, as RSS does (arXiv 2204.09210, code);
        `over="subnets"` gives every distinct subnet the same probability.
        """
        if over == "choices":
            return self.build(lambda _, values: rng.choice(values))
        return self.build(lambda choice, values: _draw(rng, values, [self._below(choice, v) for v in values]))

    def draws_of(self, names: Sequence[str]) -> Iterator[tuple[Mapping[str, int], float]]:
        """All values that a uniform draw can give some choices and those they depend on, each with its probability.

        A choice that does not exist there is left out.
        """
        wanted: set[str] = set()
        for name in names:
            choice: Choice | None = self[name]
            while choice is not None:
                wanted.add(choice.name)
                choice = self[choice.parent] if choice.parent else None
        choices = [choice for choice in self.choices if choice.name in wanted]

        def from_(i: int, values: dict[str, int], probability: float) -> Iterator[tuple[Mapping[str, int], float]]:
            if i == len(choices):
                yield values, probability
                return
            choice = choices[i]
            open_values = choice.open_values(values.get(choice.parent) if choice.parent else None)
            if not open_values:
                yield from from_(i + 1, values, probability)
            for value in open_values:
                yield from from_(i + 1, values | {choice.name: value}, probability / len(open_values))

        return from_(0, {}, 1.0)

    def sample_even(self, rng: random.Random) -> Architecture:
        """Draw one whose choices of a role all lie at about the same share of their values.

        For each role a share is drawn uniformly, and for each choice up to `UNEVEN` is added or taken off. Where each
        choice is drawn by itself, some layer is nearly always far narrower than the others, which costs a network
        that was trained before dearly (docs/own_network.md). That depth and width go together is the idea of CompOFA
        (Sahni 2021, arXiv 2104.12642), which ties them to each other; here each role has a share of its own.
        """
        shares: dict[str, float] = {}

        def pick(choice: Choice, values: tuple[int, ...]) -> int:
            role = choice.role or choice.name
            if role not in shares:
                shares[role] = rng.random()
            share = shares[role] + UNEVEN * (2 * rng.random() - 1)
            return values[min(max(0, int(share * len(values))), len(values) - 1)]

        return self.build(pick)

    def count(self) -> int:
        """The exact number of distinct architectures."""
        roots = (choice for choice in self.choices if choice.parent is None)
        return math.prod(sum(self._below(root, value) for value in root.values) for root in roots)

    def _below(self, choice: Choice, value: int) -> int:
        """How many ways the choices that depend on `choice` can be set where it has `value`."""
        return self._counts_below[choice.name][value]

    @cached_property
    def _counts_below(self) -> dict[str, dict[int, int]]:
        counts = {choice.name: dict.fromkeys(choice.values, 1) for choice in self.choices}
        for child in reversed(self.choices):
            if child.parent is None:
                continue
            for value in counts[child.parent]:
                ways = sum(counts[child.name][v] for v in child.open_values(value))
                counts[child.parent][value] *= ways or 1
        return counts

    def check(self, arch: Mapping[str, int]) -> Architecture:
        """The architecture with exactly these values, in the space's order.

        Raises `UserError` that names the choice that is unknown, missing, too many or out of range.
        """
        if isinstance(arch, Architecture) and arch in self._checked:
            return arch

        def pick(choice: Choice, values: tuple[int, ...]) -> int:
            if choice.name not in arch:
                raise UserError(f"the architecture lacks {choice.name}; it may be {_listed(values)}")
            if arch[choice.name] not in values:
                raise UserError(f"{choice.name} is {arch[choice.name]}; it may be {_listed(values)}")
            return values[values.index(arch[choice.name])]

        built = self.build(pick)
        for name in arch:
            if name not in built:
                self[name]
                raise UserError(f"{name} does not exist where {self[name].parent} has the value given")
        if len(self._checked) > 10_000:
            self._checked.clear()
        self._checked.add(built)
        return built

    @cached_property
    def _checked(self) -> set[Architecture]:
        return set()

    def __contains__(self, arch: object) -> bool:
        if not isinstance(arch, Mapping):
            return False
        try:
            self.check(arch)
        except UserError:
            return False
        return True

    def parse(self, text: str) -> Architecture:
        """Read an architecture back from its text form; `largest` and `smallest` are understood too.

        Raises `UserError` that says where the text departs from the space.
        """
        if text in ("largest", "smallest"):
            return self.largest() if text == "largest" else self.smallest()
        tokens = re.findall(r"([a-z])(\d{1,18})", text)
        position = 0

        def pick(choice: Choice, values: tuple[int, ...]) -> int:
            nonlocal position
            letter = choice.name.rpartition(".")[2][0]
            if position == len(tokens):
                raise UserError(f"architecture {text!r} ends before {choice.name} ({letter}: {_listed(values)})")
            found, value = tokens[position]
            if found != letter or int(value) not in values:
                raise UserError(
                    f"architecture {text!r}: part {position + 1} is {found}{value} where {choice.name} "
                    f"stands, which is {letter} with {_listed(values)}"
                )
            position += 1
            return int(value)

        arch = self.build(pick)
        if str(arch) != text:
            raise UserError(f"architecture {text!r} is not of the form {str(arch)!r}")
        return arch

    def matching(self, pattern: str) -> list[Choice]:
        """The choices of a role (`kernel`), or whose name, or last part of it, matches a pattern (`stage2.*`).

        A role that the space lacks gives none. Raises `UserError` that lists the names where a pattern matches nothing.
        """
        found = [c for c in self.choices if fnmatchcase(c.name, pattern) or pattern in (c.last_name, c.role)]
        if not found and pattern not in ROLES:
            raise UserError(f"no choice matches {pattern!r}; the choices are {', '.join(self._by_name)}")
        return found

    def restrict(self, values: Mapping[str, Sequence[int]]) -> "SearchSpace":
        """The part of the space in which the choices matching each pattern keep only the values given.

        Its architectures are architectures of this space. Roles that it lacks are passed over. Raises `UserError` for
        another pattern that matches nothing, a value that a choice does not have, and a choice left without a value.
        """
        keep: dict[str, set[int]] = {choice.name: set(choice.values) for choice in self.choices}
        for pattern, wanted in values.items():
            for choice in self.matching(pattern):
                if not wanted or not set(wanted) <= set(choice.values):
                    raise UserError(
                        f"{choice.name} cannot be restricted to {_listed(wanted)}: it has {_listed(choice.values)}"
                    )
                keep[choice.name] &= set(wanted)
        return self._keep(keep)

    def by_image_size(self) -> "list[SearchSpace]":
        """The parts of the space in which all subnets have images of one size, from small to large.

        Itself where there is not exactly one choice of the role "resolution", or it does not always exist.
        """
        choices = self.matching("resolution")
        if len(choices) != 1 or choices[0].parent is not None:
            return [self]
        return [self.restrict({"resolution": (size,)}) for size in choices[0].values]

    def keep_largest(self, counts: Mapping[str, int]) -> "SearchSpace":
        """The part of the space in which the choices matching each pattern keep their n largest values.

        Roles that it lacks are passed over. Raises `UserError` for another pattern that matches nothing and for an n
        below 1.
        """
        return self._keep_ends(counts, lambda values, count: values[-count:])

    def keep_smallest(self, counts: Mapping[str, int]) -> "SearchSpace":
        """As `keep_largest`, but the n smallest values."""
        return self._keep_ends(counts, lambda values, count: values[:count])

    def _keep_ends(
        self, counts: Mapping[str, int], ends: Callable[[tuple[int, ...], int], tuple[int, ...]]
    ) -> "SearchSpace":
        keep: dict[str, set[int]] = {choice.name: set(choice.values) for choice in self.choices}
        for pattern, count in counts.items():
            if count < 1:
                raise UserError(f"{pattern!r} must keep at least 1 value, not {count}")
            for choice in self.matching(pattern):
                keep[choice.name] &= set(ends(choice.values, count))
        return self._keep(keep)

    def couple(self, child: str, parent: str) -> "SearchSpace":
        """The space in which each `child` choice is fixed by the `parent` choice that it depends on.

        The i-th value of the parent goes with the i-th value of the child, as in CompOFA (arXiv 2104.12642, section 3);
        where the child has another number of values, with the one that lies as far between its ends. `child` and
        `parent` are roles or last parts of names; where the space lacks one of these roles it stays as it is. A child
        that depends on nothing, such as the width of a block that is always there, stays free beside others that do.
        Raises `UserError` where no child has such a parent, or one has another.
        """
        if not self.matching(child) or not self.matching(parent):
            return self
        coupled = []
        children = {choice.name for choice in self.matching(child)}
        if any(self[name].parent is not None for name in children):
            children -= {name for name in children if self[name].parent is None}
        for choice in self.choices:
            if choice.name not in children:
                coupled.append(choice)
                continue
            above = self._by_name.get(choice.parent or "")
            if above is None or parent not in (above.last_name, above.role) or choice.allowed is None:
                raise UserError(f"{choice.name} does not depend on a choice '{parent}'")
            last, steps = len(choice.values) - 1, max(1, len(above.values) - 1)
            partner = {v: choice.values[(2 * i * last + steps) // (2 * steps)] for i, v in enumerate(above.values)}
            for value, open_values in choice.allowed.items():
                if partner[value] not in open_values:
                    raise UserError(f"{choice.name} may not be {partner[value]} where {above.name} is {value}")
            coupled.append(replace(choice, allowed={value: (partner[value],) for value in choice.allowed}))
        return SearchSpace(tuple(coupled))

    def _keep(self, keep: Mapping[str, set[int]]) -> "SearchSpace":
        kept = []
        for choice in self.choices:
            values = tuple(v for v in choice.values if v in keep[choice.name])
            allowed = None
            if choice.allowed is not None and choice.parent is not None:
                open_parents = (p for p in choice.allowed if p in keep[choice.parent])
                allowed = {p: tuple(v for v in choice.allowed[p] if v in values) for p in open_parents}
                if not all(allowed.values()):
                    raise UserError(f"{choice.name} is left without a value")
            if not values:
                raise UserError(f"{choice.name} is left without a value")
            kept.append(replace(choice, values=values, allowed=allowed))
        return SearchSpace(tuple(kept))


def derived_rng(*key: int | str) -> random.Random:
    """A generator that follows from `key` alone, such as (seed, "subnets", phase, step)."""
    return random.Random(derived_seed(*key))


def derived_seed(*key: int | str) -> int:
    """A whole number below 2^63 that follows from `key` alone, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


def _draw(rng: random.Random, values: Sequence[int], weights: Sequence[int]) -> int:
    ticket = rng.randrange(sum(weights))
    for value, weight in zip(values, weights, strict=True):
        if ticket < weight:
            return value
        ticket -= weight
    raise AssertionError("a ticket below the sum of the weights must fall on a value")


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)
