"""The bases of settings, which a person writes, and of records, which the program reads back: frozen, checked once."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, model_validator

from trainonce.errors import UserError
from trainonce.files import LARGEST_NUMBER
from trainonce.records import objects, read_json, read_texts


class Settings(BaseModel):
    """A frozen, keyword-only value whose every field is checked when it is made.

    Settings made from what a person wrote (a file, a command line) go through `parse`, which
    turns a refusal into one sentence; the constructor raises pydantic's own error, a `ValueError` too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_the_valid_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {key!r}; the valid keys are {', '.join(cls.model_fields)}")
        return values

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Make the settings from a mapping.

        `where` names the source in the error (a file, an option).
        Raises `UserError`: one sentence with the wrong key and, for an unknown one, the valid keys.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UserError(f"{where}: {_sentence(error)}") from error


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """What a person wrote in a TOML file; `what` it is, for the error. Raises `UserError` that names the file."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from error


def refuse_subclass(value: object, kind: type) -> None:
    """Raise `UserError` where a value is of a subclass of `kind`, whose own methods and fields would go unused."""
    if type(value) is not kind:
        raise UserError(
            f"{type(value).__name__} is a subclass of {kind.__name__}, and only {kind.__name__} itself is taken: what "
            "it adds would not be used or recorded"
        )


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"the key '{key}' is missing"
    if message.startswith("unknown key"):
        return f"{key}: {message}" if key else message
    return f"{key}: {message} (got {repr(first['input'])[:100]})" if key else message


# Bounds stand with each kind of number, since pydantic checks those of a union in Python, and those of 64 bits first,
# since it compares larger ones slowly: without that order reading lines takes 1.1 times as long.
_Whole64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_LargeWhole = Annotated[int, Field(gt=-int(LARGEST_NUMBER), lt=int(LARGEST_NUMBER))]
_Fraction = Annotated[float, Field(gt=-LARGEST_NUMBER, lt=LARGEST_NUMBER)]
_KINDS = {"constrained-int", "constrained-float"}
"""What pydantic calls the members of the unions below where it says where a value is wrong."""

Number = Annotated[_Whole64 | _LargeWhole | _Fraction, Field(union_mode="left_to_right")]
"""A number that a record can hold (`trainonce.files.fits_record`), whole or not as it was written."""
Whole = Annotated[_Whole64 | _LargeWhole, Field(union_mode="left_to_right")]
"""A whole number that a record can hold."""
JsonObject = dict[str, JsonValue]
"""An object of a file that only its owner reads, or nobody: the settings of a family, of another version."""


class Record(BaseModel):
    """A frozen value of a file that the program writes and reads back, each field checked once, where it is read.

    Keys that the fields do not name, as other versions may have written, are passed over. `to_json` gives the values in
    the fields' order, those alone that were given or read.
    """

    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def read(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """The record in a JSON object; `where` names its file. Raises `UserError` that names the key that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{where}: {_wrong_key(error, ())}") from error

    @classmethod
    def read_file(cls, path: str | Path) -> Self:
        """The record in a document. Raises `UserError` as `trainonce.records.read_json` and `read` do."""
        return cls.read(read_json(Path(path)), where=str(path))

    @classmethod
    def read_lines(cls, path: str | Path) -> list[Self]:
        """The records in a file of lines; none if there is no file.

        Warns and raises `UserError` as `trainonce.records.read_lines` does, and where a key of a line is wrong.
        """
        path, lines = Path(path), TypeAdapter(list[cls])  # type: ignore[valid-type]
        texts = read_texts(path)
        try:  # one call that reads and checks all lines takes a third of the time of reading JSON first
            found: list[Self] = lines.validate_json(b"[" + b",".join(texts) + b"]")
        except ValidationError:
            found = []
        if len(found) == len(texts):
            return found
        values = objects(texts, path)  # JSON that Python alone reads, or a line that is wrong, whose number this says
        try:
            return lines.validate_python(values)
        except ValidationError as error:
            number = int(error.errors(include_url=False)[0]["loc"][0]) + 1
            raise UserError(f"{path}, line {number}: {_wrong_key(error, (number - 1,))}") from error

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


def _wrong_key(error: ValidationError, place: tuple[int, ...]) -> str:
    """What is wrong, in words: of `{"a": [{"b": "x"}]}`, for a number, "a 1: its 'b' is missing or of another kind"."""
    first = error.errors(include_url=False)[0]
    path: list[str] = []
    numbers = ""  # in a list; of the last key they are left out
    for part in first["loc"][len(place) :]:
        if isinstance(part, int):
            numbers += f" {part + 1}"
        elif part not in _KINDS and not _is_type(part):
            path = [*path[:-1], path[-1] + numbers, part] if path else [part]
            numbers = ""
    if first["type"] == "value_error":  # what a record says itself
        inside, says = path, first["msg"].removeprefix("Value error, ")
    else:
        inside, says = path[:-1], f"its {path[-1]!r} is missing or of another kind"
    return ": ".join([*([", ".join(inside)] if inside else []), says])


def _is_type(part: str) -> bool:
    """Whether it is no key but what pydantic calls a member of a union: `str`, `list[int]`, the name of a class."""
    return part in ("str", "int", "float", "bool") or "[" in part or part[:1].isupper()
