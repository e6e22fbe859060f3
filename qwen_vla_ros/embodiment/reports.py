# SPDX-License-Identifier: Apache-2.0
"""Faults and findings as lines for people and as records for programs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwen_vla_ros.embodiment.checkup import Finding
from qwen_vla_ros.embodiment.document import Document, parse_document
from qwen_vla_ros.embodiment.errors import Fault


class Source:
    """The file of an embodiment, for the lines of its fields."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._document = parse_document(file.read_bytes())
        except OSError:
            self._document = Document()

    def place(self, path: tuple[Any, ...]) -> str:
        """`robot.yaml:12` of a field; of the part above it where the file leaves it to the default."""
        line = self._document.line_of(path)
        return f"{self.file}:{line}" if line is not None else str(self.file)

    def fault_lines(self, faults: Iterable[Fault]) -> list[str]:
        """One line per fault."""
        lines = []
        for fault in faults:
            place = f"{self.file}:{fault.line}" if fault.line is not None else str(self.file)
            field = f"{fault.field}: " if fault.path else ""
            lines.append(f"{place}: {field}found {fault.found}, expected {fault.expected}")
        return lines

    def finding_lines(self, findings: Iterable[Finding]) -> list[str]:
        """One line per finding."""
        return [
            f"{self.place(finding.path)}: {'warning: ' if finding.warning else ''}{finding}"
            for finding in findings
        ]

    def records(self, findings: Iterable[Finding]) -> list[dict[str, Any]]:
        """Findings as plain values."""
        return [
            {
                "code": finding.code,
                "warning": finding.warning,
                "line": self._document.line_of(finding.path),
                "field": finding.field,
                "topic": finding.topic,
                "found": finding.found,
                "expected": finding.expected,
                "advice": finding.advice,
            }
            for finding in findings
        ]


def fault_record(fault: Fault) -> dict[str, Any]:
    """A fault as plain values."""
    return {"line": fault.line, "field": fault.field, "found": fault.found, "expected": fault.expected}
