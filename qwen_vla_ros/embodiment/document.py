# SPDX-License-Identifier: Apache-2.0
"""YAML text to plain values, with the line of every value."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

from qwen_vla_ros.embodiment.errors import Fault, value_text

MAX_BYTES = 256 * 1024
# Aliases let a small file stand for a huge one; this bounds what it may stand for.
MAX_VALUES = 20_000
MAX_DEPTH = 32

Path = tuple[Any, ...]


# Nesting cannot be deeper than there are characters that open something.
_OPENERS = re.compile(r"[\[{:?-]")
# libyaml recurses on the stack of C, where too much is a crash instead of an error.
_MAX_OPENERS_FOR_C = 3_000


class _PythonLoader(yaml.SafeLoader):
    """Scalars as in YAML 1.2: `1e-3` is a number, `on` and `12:30` are text."""


# libyaml is ten times as fast, and not everywhere.
class _CLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """As `_PythonLoader`."""


for _loader in (_PythonLoader, _CLoader):
    _loader.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in (
        ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
        ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
        ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
        ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
        ("null", r"^(?:~|null|Null|NULL|)$", "~nN"),
        ("null", r"^$", [""]),
    ):
        _loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


@dataclass
class Document:
    """Values of a YAML file.

    Attributes:
        data: mappings, lists and scalars; None where the text is not YAML.
        lines: line of each path, counted from 1. A key has the line of the key.
        faults: of the text itself: syntax, duplicate keys, tags, size.
    """

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def line_of(self, path: Path) -> int | None:
        """Line of the path, or of the nearest part above it."""
        for end in range(len(path), -1, -1):
            line = self.lines.get(path[:end])
            if line is not None:
                return line
        return None


def parse_document(content: bytes) -> Document:
    """Read YAML safely: no tags, no objects, bounded size and depth. Bad content gives faults."""
    document = Document()
    if len(content) > MAX_BYTES:
        return _refuse(document, f"{len(content)} bytes", f"at most {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return _refuse(document, f"the byte 0x{content[error.start]:02X}", "UTF-8 text", line)
    try:
        loader = _CLoader if len(_OPENERS.findall(text)) <= _MAX_OPENERS_FOR_C else _PythonLoader
        node = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        return _refuse(
            document, f"text that is not YAML ({problem})", "YAML", mark.line + 1 if mark else None
        )
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return _refuse(document, f"a character that YAML does not allow ({error.reason})", "YAML", line)
    except RecursionError:
        return _refuse(document, "too many levels of nesting", f"at most {MAX_DEPTH}")
    if node is None:
        return _refuse(document, "an empty file", "an embodiment; see docs/embodiments.md", 1)
    document.data = _Reader(document).value(node, (), 0)
    return document


def _refuse(document: Document, found: str, expected: str, line: int | None = None) -> Document:
    document.faults.append(Fault((), found, expected, line))
    return document


class _Reader:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._count = 0

    def value(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_DEPTH:
            if not any(fault.found.startswith("too many") for fault in self._document.faults):
                self._fault(
                    node,
                    path,
                    "too many values or levels",
                    f"at most {MAX_VALUES} values, {MAX_DEPTH} levels",
                )
            return None
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.value(child, (*path, index), depth + 1) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._fault(node, path, f"the tag {node.tag}", "no tag")
        return None

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = (
                    value_text(key)
                    if isinstance(key_node, yaml.ScalarNode)
                    else "that is a list or a mapping"
                )
                self._fault(key_node, path, f"the key {shown}", "a key that is text")
                continue
            place = (*path, key)
            if key in values:
                line = self._document.lines[place]
                self._fault(
                    key_node, (*path, key), "the key a second time", f"it once (first on line {line})"
                )
                continue
            self._document.lines[place] = key_node.start_mark.line + 1
            values[key] = self.value(value_node, (*path, key), depth + 1)
        return values

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Hashable:
        kind = node.tag.rpartition(":")[2] if node.tag.startswith("tag:yaml.org,2002:") else node.tag
        text = node.value
        try:
            if kind == "str":
                return str(text)
            if kind == "null":
                return None
            if kind == "bool" and text.lower() in ("true", "false"):
                return bool(text.lower() == "true")
            if kind == "int":
                return int(text)
            if kind == "float":
                return _float(text)
        except ValueError:
            pass
        else:
            self._fault(node, path, f"the tag {node.tag}", "no tag")
            return None
        self._fault(node, path, value_text(text), f"a value of type {kind}")
        return None

    def _fault(self, node: yaml.Node, path: Path, found: str, expected: str) -> None:
        self._document.faults.append(Fault(path, found, expected, node.start_mark.line + 1))


def _float(text: str) -> float:
    lowered = text.lower().lstrip("+-")
    if lowered in (".inf", ".nan"):
        sign = -1.0 if text.startswith("-") else 1.0
        return math.copysign(math.inf, sign) if lowered == ".inf" else math.nan
    return float(text)
