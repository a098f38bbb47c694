"""Validated parameters: one readable message for every fault, before any work."""

import ast
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

Model = TypeVar("Model", bound="Parameters")
Item = TypeVar("Item")


class ParameterError(ValueError):
    """One or more parameters are not allowed; the message has a line for each: name, value, allowed range."""


def whole(default: int, low: int, high: int, meaning: str) -> Any:
    """A pydantic field that takes whole numbers from `low` to `high`."""
    return Field(
        default,
        ge=low,
        le=high,
        description=meaning,
        json_schema_extra={"allowed": f"a whole number from {low:,} to {high:,}"},
    )


def real(default: float, low: float, high: float, meaning: str) -> Any:
    """A pydantic field that takes finite numbers from `low` to `high`."""
    return Field(
        default,
        ge=low,
        le=high,
        allow_inf_nan=False,
        description=meaning,
        json_schema_extra={"allowed": f"a finite number from {low:g} to {high:g}"},
    )


def as_tuple(value: Any) -> Any:
    """A list, tuple or range as a tuple; refuses what has no order or is no list."""
    # A set has no order and a string is a sequence of letters: neither is what its writer meant.
    if not isinstance(value, list | tuple | range):
        raise ValueError("not a list")
    return tuple(value)


def _distinct(value: Any) -> Any:
    if len(set(value)) < len(value):
        raise ValueError("holds a value twice")
    return value


Distinct = Annotated[tuple[Item, ...], BeforeValidator(as_tuple), AfterValidator(_distinct)]
Seeds = Distinct[Annotated[int, Field(strict=True, ge=0, lt=2**32)]]


def seed_list(default: Sequence[int], source: str) -> Any:
    """A pydantic field for `Seeds`: one paired run of every arm for each."""
    return Field(
        tuple(default),
        strict=False,
        min_length=1,
        description=f"one paired run of every arm for each seed of {source}",
        json_schema_extra={"allowed": "a list of at least one distinct whole number from 0 to 4,294,967,295"},
    )


def arm_list(
    default: Sequence[str], allowed: Sequence[str] | None = None, least: int = 1, meaning: str = "which policies play"
) -> Any:
    """A pydantic field that takes a list of distinct arms out of `allowed`, by default those of the default."""
    some = "at least one of " if least else ""
    return Field(
        tuple(default),
        strict=False,
        min_length=least,
        description=meaning,
        json_schema_extra={"allowed": f"a list of {some}{', '.join(allowed or default)}, each at most once"},
    )


def _fits(value: int, info: ValidationInfo) -> int:
    if value > info.data.get("dimensions", value):
        raise ValueError("more signal dimensions than dimensions")
    return value


Signal = Annotated[int, AfterValidator(_fits)]


def signal(default: int) -> Any:
    """A pydantic field for `Signal`; it comes after the field `dimensions`, which bounds it."""
    return Field(
        default,
        ge=1,
        description="leading coordinates in which the target is not 0",
        json_schema_extra={"allowed": "a whole number from 1 to the number of dimensions"},
    )


class Parameters(BaseModel):
    """Base of every set of parameters: frozen, strict about types, closed to unknown names.

    Raises
    ------
    ParameterError
        Instead of pydantic's own error, with one line for each fault.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, validate_default=True)

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ParameterError(_message(type(self), error, values)) from None

    def replace(self, **changes: Any) -> "Parameters":
        """A validated copy with some values changed."""
        return type(self)(**{**dict(self), **changes})


class NotebookParameters(Parameters):
    """What every notebook takes beside its own parameters."""

    results_path: str = Field(
        "",
        description="where to write the results as JSON; empty: nowhere",
        json_schema_extra={"allowed": "empty, or a file in an existing folder that can be written to"},
    )

    @field_validator("results_path")
    @classmethod
    def _writable(cls, value: str) -> str:
        path = Path(value)
        if value and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
            raise ValueError("cannot be written")
        if value and path.exists() and not os.access(path, os.W_OK):
            raise ValueError("cannot be written")
        return value


def _allowed(model: type[Parameters], name: str) -> str:
    field = model.model_fields[name]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "allowed" in extra:
        return str(extra["allowed"])
    if field.annotation is bool:
        return "True or False"
    return "one of " + ", ".join(map(repr, get_args(field.annotation)))


def _message(model: type[Parameters], error: ValidationError, values: Mapping[str, Any]) -> str:
    lines = {}
    for fault in error.errors():
        name = str(fault["loc"][0])
        shown = repr(values[name] if name in values else model.model_fields[name].default)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        if fault["type"] == "extra_forbidden":
            lines[name] = f"{name} = {shown}: no such parameter; allowed are {', '.join(model.model_fields)}"
        else:
            lines[name] = f"{name} = {shown}: must be {_allowed(model, name)}"
    head = "this parameter is" if len(lines) == 1 else f"these {len(lines)} parameters are"
    return f"{head} not allowed\n" + "\n".join(f"  {line}" for line in lines.values())


def read(model: type[Model], namespace: Mapping[str, Any]) -> Model:
    """The notebook's parameters, validated.

    Parameters
    ----------
    model : type
        The set of parameters that the notebook takes.
    namespace : mapping
        The notebook's `globals()`. The names that its parameters cells assigned are taken, so that a misspelt name is
        refused even though the notebook would run without it.

    Raises
    ------
    ParameterError
        For an unknown name, a value that is not allowed, or where no parameter was set.
    """
    cells = [cell for cell in namespace["In"] if cell.lstrip().startswith("# Parameters")]
    # A reader may correct a cell and run it again: of each kind (the defaults, papermill's) only the latest counts.
    latest = {cell.lstrip().splitlines()[0]: cell for cell in cells}
    names = {name: None for cell in latest.values() for name in _assigned(cell)}
    if not cells:
        # A runner that keeps no history (nbval) starts afresh: all plain values so far are parameters.
        plain = bool | int | float | str | list | dict | None
        own = {
            name: value for name, value in namespace.items() if not name.startswith("_") and name not in ("In", "Out")
        }
        names = {name: None for name, value in own.items() if isinstance(value, plain)}
    if not names:
        raise ParameterError("no parameters found: run the cell that starts with '# Parameters' first")
    return model(**{name: namespace[name] for name in names})


def _assigned(source: str) -> Sequence[str]:
    targets = [node.targets for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [target.id for group in targets for target in group if isinstance(target, ast.Name)]
