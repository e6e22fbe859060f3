# SPDX-License-Identifier: Apache-2.0
"""docs/embodiments.md against the schema and the code; docs/new_robot.md by doing what it says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen_vla_ros.cli import app
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


TUTORIAL = PAGE.with_name("new_robot.md")


def test_the_commands_of_the_tutorial_print_what_it_says(tmp_path, monkeypatch):
    text = TUTORIAL.read_text()
    copied = False
    for folder in ("embodiments", "checkpoints"):
        (tmp_path / folder).symlink_to(PAGE.parents[1] / folder)
    monkeypatch.chdir(tmp_path)
    group, home, _ = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    blocks = [block.splitlines() for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)]
    for line, *printed in blocks:
        program, *arguments = shlex.split(line.removeprefix("$ "))
        if program == "cp":
            shutil.copy(*arguments)
            copied = True
            continue
        if program == "tools/with_ros":
            continue  # three processes: the nodes' tests and those of the simulation do it
        assert program == "qwen-vla"
        result = CliRunner().invoke(app, arguments)
        assert result.output.splitlines() == printed, line
        if arguments[:2] == ["embodiment", "new"]:
            made = Path("my_arm.yaml").read_text()
            assert made.count("\nhome:") == 1
            Path("my_arm.yaml").write_text(made.replace("\nhome:", f"{group}\nhome:") + home)
    assert copied
    assert len(blocks) == 6
    wrong = Path("my_arm.yaml").read_text()
    for right, mistake in (("[-1.88495, 1.98967]", "[-108.0, 114.0]"), ("shoulder", "sholder")):
        assert right in wrong
        wrong = wrong.replace(right, mistake)
    Path("my_arm.yaml").write_text(wrong)
    found = CliRunner().invoke(app, ["embodiment", "validate", "my_arm.yaml", "--urdf", "robot.urdf"])
    (shown,) = re.findall(r"```\n(my_arm.*?)```", text, re.DOTALL)
    assert found.output.startswith(shown)
