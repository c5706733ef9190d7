"""A suite file read, or every reason why it cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from bitbench.layers import registry as layer_registry
from bitbench.plugins import advice
from bitbench.suite.check import impossible_selections, unknown_names
from bitbench.suite.problems import Problem, SuiteError, translate
from bitbench.suite.schema import SUITE_SCHEMA, Suite
from bitbench.suite.source import Source
from bitbench.workloads import registry as workload_registry


def load_suite(path: Path | str) -> Suite:
    """The suite in the YAML file ``path``.

    Raises :class:`SuiteError` (exit code 2) with all problems found, each with its line.
    """
    path = Path(path)
    return parse_suite(_read(path), str(path))


def parse_suite(text: str, name: str = "suite.yaml") -> Suite:
    """The suite in ``text``; ``name`` stands for the file in messages."""
    try:
        source = Source(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        line = mark.line + 1 if mark else 1
        hint = (
            "indent with spaces, not tabs"
            if "\\t" in what
            else "check indentation, brackets and quotes above"
        )
        raise SuiteError(name, [Problem((), f"this is not YAML: {what}", hint, line)]) from error
    except RecursionError:
        raise SuiteError(name, [Problem((), "nested too deeply", "a suite needs some five levels")]) from None
    except yaml.YAMLError as error:
        raise SuiteError(name, [Problem((), f"this is not YAML: {error}")]) from error
    if source.empty:
        raise SuiteError(name, [Problem((), "the file is empty", "a suite needs at least " + _NEEDS)])
    if not isinstance(source.data, dict):
        kind = "a list" if isinstance(source.data, list) else "a single value"
        raise SuiteError(
            name, [Problem((), f"the file holds {kind}, not a mapping", "a suite needs " + _NEEDS)]
        )
    newer = _newer(source.data)
    if newer:
        # A later format may mean anything: further findings would mislead.
        raise SuiteError(name, [replace(newer, line=source.line(newer.loc))])
    suite, problems = _validate(source.data)
    if suite is not None and not problems and not source.problems:
        problems += impossible_selections(suite)
    found = source.problems + [replace(p, line=source.line(p.loc)) for p in problems]
    if found or suite is None:
        raise SuiteError(name, found)
    return suite


_NEEDS = "schema, name, baseline, layers and workloads (see suites/smoke.yaml)"


def _validate(data: dict[str, Any]) -> tuple[Suite | None, list[Problem]]:
    problems = list(unknown_names(data))
    try:
        return Suite.model_validate(data), problems
    except ValidationError as error:
        return None, problems + translate(error, data)


def _newer(data: dict[str, Any]) -> Problem | None:
    version = data.get("schema")
    if isinstance(version, int) and not isinstance(version, bool) and version > SUITE_SCHEMA:
        return Problem(
            ("schema",),
            f"version {version} is newer than this bitbench reads, which is {SUITE_SCHEMA}",
            "update bitbench, or write the suite in the older format",
        )
    return None


def _read(path: Path) -> str:
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else Path("suites")
        there = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
        told = advice(path.name, there, label=f"in {folder}") or f"no suite lies in {folder}"
        raise SuiteError(str(path), [Problem((), "no such file", told)])
    try:
        return path.read_text(encoding="utf-8")
    except IsADirectoryError:
        there = sorted(str(p) for p in path.glob("*.y*ml"))
        told = f"name a file: {', '.join(there)}" if there else "name a YAML file"
        raise SuiteError(str(path), [Problem((), "this is a directory", told)]) from None
    except UnicodeDecodeError as error:
        raise SuiteError(
            str(path), [Problem((), f"not UTF-8 text (byte {error.start})", "is this a suite?")]
        ) from error
    except OSError as error:
        raise SuiteError(str(path), [Problem((), f"cannot be read: {error.strerror}")]) from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of a suite file, every registered layer and workload kind spelt out."""
    schema = Suite.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    for base, registry in (("LayerSpec", layer_registry), ("WorkloadSpec", workload_registry)):
        members = []
        for kind in registry.kinds():
            name = f"{base}.{kind}"
            definitions[name] = _definition(registry.get(kind).spec, kind, definitions)
            members.append({"$ref": f"#/$defs/{name}"})
        definitions[base] = {"oneOf": members}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _definition(spec: type[BaseModel], kind: str, definitions: dict[str, Any]) -> dict[str, Any]:
    own = spec.model_json_schema()
    definitions.update(own.pop("$defs", {}))
    own["properties"]["kind"] = {"const": kind}
    own["required"] = sorted({*own.get("required", []), "kind"})
    return own
