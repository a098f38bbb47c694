"""Validated parameters: one readable message for every fault, before any work."""

import ast
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

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


# Longest list that is read. Nobody plays as many seeds, and a range of Python may be longer than memory.
LONGEST = 100_000


class ParameterError(ValueError):
    """One or more parameters are not allowed; the message has a line for each: name, value, allowed range."""

    def _render_traceback_(self) -> list[str]:
        # Jupyter, and papermill with it, shows these lines in place of the traceback.
        return [f"{type(self).__name__}: {self}"]


class _Brief(reprlib.Repr):
    def __init__(self, longest: int):
        super().__init__()
        self.maxstring = self.maxother = longest
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = longest // 3

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write out thousands of decimals.
        return repr(value) if value.bit_length() < 1000 else hex(value)


def brief(value: Any, longest: int = 80) -> str:
    """The value as Python writes it, in one line of at most `longest` characters, whatever the value.

    Examples
    --------
    >>> brief("two\\nlines"), brief(10**5000, longest=12), brief([[1, 2]] * 10**6, longest=20)
    ("'two\\\\nlines'", '0x31e2080...', '[[1, 2], [1, 2], ...')
    """
    return one_line(_Brief(longest).repr(value), longest)


def one_line(message: object, longest: int = 300) -> str:
    """A text, such as the message of another package's error, in one line of at most `longest` characters."""
    text = " ".join(filter(None, map(str.strip, str(message).splitlines())))
    return text if len(text) <= longest else text[: longest - 3] + "..."


def whole(default: int, low: int, high: int, meaning: str) -> Any:
    """A pydantic field that takes whole numbers from `low` to `high`."""
    return Field(
        default,
        ge=low,
        le=high,
        description=meaning,
        json_schema_extra={"allowed": f"a whole number from {low:,} to {high:,}"},
    )


def real(default: float | None, low: float, high: float, meaning: str) -> Any:
    """A pydantic field that takes finite numbers from `low` to `high`, and None where that is the default."""
    left_open = "None or " if default is None else ""
    return Field(
        default,
        ge=low,
        le=high,
        allow_inf_nan=False,
        description=meaning,
        json_schema_extra={"allowed": f"{left_open}a finite number from {low:g} to {high:g}"},
    )


def text(default: str, meaning: str, allowed: str) -> Any:
    """A pydantic field that takes texts which are not empty; `allowed` says which."""
    return Field(default, min_length=1, description=meaning, json_schema_extra={"allowed": allowed})


def as_tuple(value: Any) -> Any:
    """A list, tuple or range as a tuple.

    Raises
    ------
    ValueError
        For what has no order, is no list, or is longer than `LONGEST`.
    """
    # A set has no order and a string is a sequence of letters: neither is what its writer meant.
    if not isinstance(value, list | tuple | range):
        raise ValueError("not a list")
    if value[LONGEST:]:
        raise ValueError("too long")
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
        json_schema_extra={
            "allowed": f"a list of distinct whole numbers from 0 to 4,294,967,295, at least one and at most {LONGEST:,}"
        },
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


def allowed(model: type["Parameters"], name: str) -> str:
    """The range of a parameter, in words.

    Raises
    ------
    TypeError
        If it was declared without one.
    """
    field = model.model_fields[name]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "allowed" in extra:
        return str(extra["allowed"])
    if field.annotation is bool:
        return "True or False"
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(map(repr, get_args(field.annotation)))
    raise TypeError(f"{model.__name__}.{name} states no allowed range: give it json_schema_extra={{'allowed': ...}}")


class Parameters(BaseModel):
    """Base of every set of parameters: frozen, strict about types, closed to unknown names.

    Raises
    ------
    ParameterError
        Instead of pydantic's own error, with one line for each fault.
    TypeError
        When a class is declared with a field that has no allowed range to name.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name in cls.model_fields:
            allowed(cls, name)

    def __init__(self, /, **values: Any):
        faulty: list[str] = []
        known = type(self).model_fields.keys()
        try:
            super().__init__(**{name: value for name, value in values.items() if name in known})
        except ValidationError as error:
            faulty = [str(fault["loc"][0]) for fault in error.errors()]
        # Unknown names are not left to pydantic, which ends at one that is no text.
        if faulty := [*dict.fromkeys(faulty), *(name for name in values if name not in known)]:
            raise ParameterError(_message(type(self), faulty, values))

    def replace(self, /, **changes: Any) -> Self:
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
        if not value:
            return value
        # A name that ends in a separator is a folder's; a link is followed.
        path = Path(os.path.realpath(value))
        try:
            new = not path.exists()
            fits = os.path.basename(value) and (new or path.is_file()) and path.parent.is_dir()
        except OSError as error:  # such as a name that is too long
            raise ValueError("cannot be written") from error
        if not fits or not os.access(path.parent, os.W_OK) or not (new or os.access(path, os.W_OK)):
            raise ValueError("cannot be written")
        return value


def _message(model: type[Parameters], faulty: Sequence[str], values: Mapping[str, Any]) -> str:
    lines = []
    for name in faulty:
        if field := model.model_fields.get(name):
            lines.append(f"{name} = {brief(values.get(name, field.default))}: must be {allowed(model, name)}")
        else:
            called = name if name.isidentifier() and len(name) <= 80 else brief(name)
            names = ", ".join(model.model_fields)
            lines.append(f"{called} = {brief(values[name])}: no such parameter; allowed are {names}")
    head = "this parameter is" if len(lines) == 1 else f"these {len(lines)} parameters are"
    return f"{head} not allowed\n" + "\n".join(f"  {line}" for line in lines)


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
        For an unknown name, a value that is not allowed, a cell that is not plain Python, or no parameter at all.
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
    return model(**{name: namespace[name] for name in names if name in namespace})


def _assigned(source: str) -> Sequence[str]:
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ParameterError(f"the cell that starts with '# Parameters' is not plain Python ({error})") from None
    return [
        part.id
        for statement in statements
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign)
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
        for part in ast.walk(target)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    ]
