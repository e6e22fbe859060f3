# SPDX-License-Identifier: Apache-2.0
"""Errors of this room: faults of an embodiment, and of an instruction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

_SHOWN = 80  # characters of a value in a message
_LONGEST = 400  # characters of any part of a message


def _one_line(text: str) -> str:
    """The text without what would break a line or a terminal: it may come from the file."""
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _path_text(path: tuple[str | int, ...]) -> str:
    text = ""
    for element in path:
        text += f"[{element}]" if isinstance(element, int) else f".{element}" if text else str(element)
    return text


def value_text(value: object) -> str:
    """A value for a message: one line, cut to a length that stays readable."""
    kind = "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, (list, tuple)) else None
    if kind is not None and not value:
        return f"{kind}, empty"
    try:
        text = "nothing" if value is None else repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a number with thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


@dataclass(frozen=True)
class Fault:
    """One fault of an embodiment: where it is, what was found, what was expected."""

    path: tuple[str | int, ...]
    found: str
    expected: str
    line: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", _one_line(self.found))
        object.__setattr__(self, "expected", _one_line(self.expected))

    @property
    def field(self) -> str:
        """The path as people write it: `actions[0].limits.velocity`."""
        return _one_line(_path_text(self.path))

    def at(self, line: int | None) -> Fault:
        return replace(self, line=line)

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        field = f"{self.field}: " if self.path else ""
        return f"{where}{field}found {self.found}, expected {self.expected}"


class EmbodimentError(ValueError):
    """An embodiment that cannot be used; `faults` holds every reason, in the order of the file.

    Attributes:
        source: the file or the name that was asked for.
        faults: at least one.
    """

    def __init__(self, source: object, faults: Iterable[Fault]) -> None:
        self.source = str(source)
        self.faults = tuple(faults)
        super().__init__(self.source, self.faults)

    def __str__(self) -> str:
        count = len(self.faults)
        lines = [f"{self.source}: {count} fault{'' if count == 1 else 's'}"]
        return "\n".join(lines + [f"  {fault}" for fault in self.faults])


class InstructionError(ValueError):
    """An instruction that must not reach the model."""
