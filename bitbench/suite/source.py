"""YAML text into plain values that remember their lines; duplicate keys are found, not merged."""

from __future__ import annotations

from typing import Any

import yaml

from bitbench.suite.problems import Loc, Problem

MAX_VALUES = 200_000
"""Values in a suite, aliases written out: a few lines of nested aliases can stand for billions."""

_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Source:
    """A parsed YAML document.

    ``data`` is what a safe loader would give, ``problems`` are duplicate and non-text keys.
    Raises :class:`yaml.YAMLError` where the text is not YAML.
    """

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        self._lines: dict[Loc, int] = {}
        self._open: set[int] = set()
        self._values = 0
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            self.empty = node is None
            self.data = None if node is None else self._value(loader, node, ())
        finally:
            loader.dispose()

    def line(self, loc: Loc) -> int:
        """Line (from 1) of the value at ``loc``, or of the nearest thing around it."""
        for depth in range(len(loc), -1, -1):
            if loc[:depth] in self._lines:
                return self._lines[loc[:depth]]
        return 1

    def _value(self, loader: yaml.SafeLoader, node: yaml.Node, loc: Loc) -> Any:
        self._lines.setdefault(loc, node.start_mark.line + 1)
        self._values += 1
        if self._values > MAX_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_VALUES} values, aliases written out", problem_mark=node.start_mark
            )
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(loader, node)
        if id(node) in self._open:
            raise yaml.MarkedYAMLError(problem="an alias stands for itself", problem_mark=node.start_mark)
        self._open.add(id(node))
        value = self._collection(loader, node, loc)
        self._open.remove(id(node))
        return value

    def _scalar(self, loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        try:
            return loader.construct_object(node)
        except ValueError:  # looks like a date and is none
            return node.value

    def _collection(self, loader: yaml.SafeLoader, node: yaml.Node, loc: Loc) -> Any:
        if node.tag not in _PLAIN:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {node.tag!r} means nothing here", problem_mark=node.start_mark
            )
        if isinstance(node, yaml.MappingNode):
            self._find_duplicates(node, loc)
            loader.flatten_mapping(node)
            result = {}
            for key_node, value_node in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(key_node.value)
                # Overwrites: an explicit key after a merged one (<<) is the one that counts.
                self._lines[(*loc, key)] = key_node.start_mark.line + 1
                result[key] = self._value(loader, value_node, (*loc, key))
            return result
        return [self._value(loader, item, (*loc, i)) for i, item in enumerate(node.value)]

    def _find_duplicates(self, node: yaml.MappingNode, loc: Loc) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(loc, "a key must be text", "write `name: value`", line))
                continue
            key = key_node.value
            if key in first:
                self.problems.append(
                    Problem(
                        (*loc, key),
                        f"the key {key!r} was given before, on line {first[key]}",
                        "remove one of the two, or rename it",
                        line,
                    )
                )
            first.setdefault(key, line)
