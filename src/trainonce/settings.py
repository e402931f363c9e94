"""The base of every settings value: frozen, keyword-only, no unknown keys, readable errors."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from trainonce.errors import UserError


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


def refuse_subclass(value: object, kind: type) -> None:
    """Raise `UserError` where a value is of a subclass of `kind`, whose own methods and fields would go unused."""
    if type(value) is not kind:
        raise UserError(
            f"{type(value).__name__} is not {kind.__name__} itself, which is closed: what a subclass adds would not be "
            "used or recorded"
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
