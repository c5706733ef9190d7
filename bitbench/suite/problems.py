"""What is wrong with a suite, in words that name the value, the limit and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from bitbench.errors import UserError
from bitbench.layers import registry as layer_registry
from bitbench.plugins import advice, join_names
from bitbench.suite.schema import Claim, Suite
from bitbench.workloads import registry as workload_registry
from bitbench.workloads.base import When

Loc = tuple[int | str, ...]
"""Keys and positions from the root of the file to a value."""


@dataclass(frozen=True)
class Problem:
    """One mistake, where it stands and what to do."""

    loc: Loc
    message: str
    remedy: str = ""
    line: int = 1

    def render(self, path: str) -> str:
        """``path:line: where: message``, the remedy on a line of its own."""
        where = _dotted(self.loc)
        text = f"{path}:{self.line}: {where + ': ' if where else ''}{self.message}"
        return f"{text}\n    {self.remedy}" if self.remedy else text


class SuiteError(UserError):
    """A suite cannot be used. ``problems`` holds all that was found, in file order."""

    def __init__(self, path: str, problems: list[Problem]) -> None:
        self.path = path
        self.problems = sorted(problems, key=lambda p: p.line)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        body = "\n".join(p.render(path) for p in self.problems)
        super().__init__(f"{count} in suite {path}; nothing was run\n{body}")


def _dotted(loc: Loc) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def translate(error: ValidationError, data: Any, prefix: Loc = ()) -> list[Problem]:
    """Pydantic's findings about ``data`` as problems; ``prefix`` leads to ``data`` in the file."""
    return [
        _problem(
            found["type"], found["loc"], found["msg"], found.get("ctx", {}), found["input"], data, prefix
        )
        for found in error.errors(include_url=False)
    ]


def _problem(
    kind: str, loc: Loc, text: str, context: dict[str, Any], value: Any, data: Any, prefix: Loc
) -> Problem:
    if kind == "kind_unknown":
        loc = (*loc, "kind")
    place = prefix + _existing(loc, data)
    if kind == "extra_forbidden":
        allowed = _keys(prefix + loc[:-1], data)
        return Problem(place, f"unknown key {str(loc[-1])!r}", advice(loc[-1], allowed, label="allowed"))
    if kind == "missing":
        return Problem(place, f"the key {str(loc[-1])!r} is missing", _describe_field(prefix + loc, data))
    if kind == "literal_error":
        choices = str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        return Problem(
            place, f"{_shown(value)} is not possible here", advice(value, choices, label="allowed")
        )
    if kind in _WANTED:
        return Problem(place, f"must be {_WANTED[kind]}, not {_shown(value)}", _yaml_hint(kind, value))
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        return Problem(place, f"must be {words} {context[key]}, not {_shown(value)}")
    if kind in ("too_short", "string_too_short"):
        return Problem(place, "must not be empty")
    if kind in ("string_pattern_mismatch", "string_too_long"):
        return Problem(
            place,
            f"{_shown(value)} cannot be a name",
            "names start with a letter or digit and hold letters, digits and . _ + - only, 64 at most",
        )
    message, _, remedy = text.removeprefix("Value error, ").partition("; ")
    return Problem(place, message, remedy.strip())


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}

_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def _shown(value: Any) -> str:
    """A value as the user wrote it, with its kind where that is the point."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, dict):
        return "a mapping"
    return f"the list {value}" if isinstance(value, list) else str(value)


def _yaml_hint(kind: str, value: Any) -> str:
    if kind == "string_type" and isinstance(value, bool):
        return "YAML reads yes, no, on and off as true and false: put the word in quotes"
    if kind == "string_type" and isinstance(value, (int, float)):
        return "put the value in quotes"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        if "e" in value.lower():
            return "YAML needs a point and a sign in exponents: 1.0e-3"
        return "remove the quotes"
    return ""


def _existing(loc: Loc, data: Any) -> Loc:
    """The longest part of ``loc`` that leads to something in ``data``: pydantic also names union
    members and dictionary keys."""
    for depth, part in enumerate(loc):
        found = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if not found:
            return loc[:depth]
        data = data[part]
    return loc


def model_at(loc: Loc, data: Any) -> type[BaseModel] | None:
    """The model that describes the mapping at ``loc`` of a suite file."""
    match loc:
        case ():
            return Suite
        case ("layers", name):
            return _spec(layer_registry, _at(data, ("layers", name)))
        case ("workloads", index):
            return _spec(workload_registry, _at(data, ("workloads", index)))
        case ("workloads", _, "include", _):
            return _spec(workload_registry, data)
        case ("workloads", _, "when"):
            return When
        case ("claims", _):
            return Claim
    return None


def _spec(registry: Any, entry: Any) -> type[BaseModel] | None:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    return registry.get(kind).spec if kind in registry.kinds() else None


def _at(data: Any, loc: Loc) -> Any:
    for part in loc:
        data = data[part]
    return data


def _keys(loc: Loc, data: Any) -> list[str]:
    model = model_at(loc, data)
    return [field.alias or name for name, field in model.model_fields.items()] if model else ["layer"]


def _describe_field(loc: Loc, data: Any) -> str:
    """The first sentence of a missing field's description, where the model documents it."""
    model = model_at(loc[:-1], data)
    for name, field in model.model_fields.items() if model else ():
        if loc[-1] in (name, field.alias) and field.description:
            return field.description
    return ""


def known_values(values: Iterator[Any]) -> str:
    """Distinct values for a message, in the order met."""
    texts = ("x".join(map(str, v)) if isinstance(v, list) else str(v) for v in values)
    return join_names(dict.fromkeys(texts))
