# SPDX-License-Identifier: Apache-2.0
"""docs/embodiments.md against the schema and the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwen_vla_ros.embodiment.schema import json_schema

PAGE = Path(__file__).parents[2] / "docs" / "embodiments.md"


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text()


def test_every_key_is_described(page):
    schema = json_schema()
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", {})}
    text = " ".join(re.findall(r"`[^`]+`|^    .*$", page, re.MULTILINE))
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}\b", text)] == []


def test_every_choice_is_described(page):
    def choices(value):
        if isinstance(value, dict):
            yield from value.get("enum", [])
            if "const" in value:
                yield value["const"]
            for inner in value.values():
                yield from choices(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from choices(inner)

    names = {str(choice) for choice in choices(json_schema())}
    assert {"joint_position", "rot6d", "diff_drive", "jpeg"} <= names
    assert [name for name in sorted(names) if not re.search(rf"\b{re.escape(name)}\b", page)] == []


def test_the_python_example_runs(page, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    expected = [
        line.rpartition("# ")[2]
        for line in example.splitlines()
        if line.startswith("print(") and "  # " in line
    ]
    for comment, line in zip(expected, [line for line in printed if not line.startswith("<|")], strict=True):
        assert line.startswith(comment.split(" [")[0].split(", physical")[0].split(", ...")[0])
