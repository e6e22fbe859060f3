# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla embodiment`, and the command that it is part of."""

from __future__ import annotations

import importlib
import json
import os
import pty
import resource
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from qwen_vla_ros import cli, resources
from qwen_vla_ros.embodiment import list_embodiments

HEAVY = ("torch", "transformers", "rclpy", "mujoco", "ruckig", "matplotlib", "cv2")


def qwen_vla(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "qwen_vla_ros.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        check=False,
    )


def test_list():
    result = qwen_vla("embodiment", "list")
    assert result.returncode == 0
    assert [line.split("\t")[0] for line in result.stdout.splitlines()[1:]] == list_embodiments()
    found = json.loads(qwen_vla("embodiment", "list", "--json").stdout)
    assert [entry["name"] for entry in found] == list_embodiments()


@pytest.mark.parametrize("name", list_embodiments())
def test_show(name):
    result = qwen_vla("embodiment", "show", name)
    assert result.returncode == 0, result.stderr
    assert f"name\t{name}" in result.stdout
    shown = json.loads(qwen_vla("embodiment", "show", name, "--json").stdout)
    assert shown["name"] == name
    for channel in shown["channels"]:
        assert f"\t{channel}\t" in result.stdout


def test_tables_on_a_terminal():
    ours, theirs = pty.openpty()
    try:
        command = [sys.executable, "-m", "qwen_vla_ros.cli", "embodiment", "show", "tiago_base"]
        environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
        subprocess.run(command, stdout=theirs, env=environment, timeout=60, check=True)
        shown = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "base/dtheta" in shown
    assert "\t" not in shown


def test_show_an_unknown_name():
    result = qwen_vla("embodiment", "show", "unitree_g2")
    assert result.returncode == 1
    assert "unitree_g1" in result.stderr
    assert "Traceback" not in result.stderr


def test_validate():
    files = [str(path) for path in sorted(resources.embodiments_directory().glob("*.yaml"))]
    result = qwen_vla("embodiment", "validate", *files)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count(": valid (") == len(files)


def test_validate_reports_faults_with_file_and_line(tmp_path):
    text = (resources.embodiments_directory() / "tiago_base.yaml").read_text()
    good, bad, absent = tmp_path / "tiago_base.yaml", tmp_path / "bad.yaml", tmp_path / "absent.yaml"
    good.write_text(text)
    bad.write_text(text.replace("name: tiago_base", "name: bad").replace("horizon: 8", "horizon: many"))
    line = next(k for k, found in enumerate(bad.read_text().splitlines(), 1) if "many" in found)
    result = qwen_vla("embodiment", "validate", str(good), str(bad), str(absent))
    assert result.returncode == 1
    assert f"{good}: valid" in result.stdout
    assert f"{bad}:{line}: horizon: found 'many', expected a whole number" in result.stdout
    assert f"{absent}: found no readable file" in result.stdout
    reports = json.loads(qwen_vla("embodiment", "validate", str(good), str(bad), "--json").stdout)
    assert [report["valid"] for report in reports] == [True, False]
    assert reports[1]["faults"] == [
        {"line": line, "field": "horizon", "found": "'many'", "expected": "a whole number"}
    ]


def test_validate_against_a_checkpoint():
    file = str(resources.embodiments_directory() / "franka_panda.yaml")
    assert qwen_vla("embodiment", "validate", file, "--channels", "8", "--horizon", "16").returncode == 0
    result = qwen_vla("embodiment", "validate", file, "--channels", "7", "--horizon", "16")
    assert result.returncode == 1
    assert "8 channels" in result.stdout


def test_prompt():
    result = qwen_vla("embodiment", "prompt", "franka_panda", "--task", "pick up the red cube")
    assert result.returncode == 0
    assert result.stdout.startswith("<|ego_start|>")
    assert result.stdout.endswith("task: pick up the red cube.\n")
    found = json.loads(qwen_vla("embodiment", "prompt", "so101", "--task", "go", "--json").stdout)
    assert found["views"] == ["ego", "cam_wrist"]
    refused = qwen_vla("embodiment", "prompt", "franka_panda", "--task", " ")
    assert refused.returncode == 1
    assert "found nothing, expected 1 to 512 characters" in refused.stderr


def test_schema_knows_every_key():
    schema = json.loads(qwen_vla("embodiment", "schema").stdout)
    assert schema["properties"]["schema"]["const"] == 1
    assert schema["additionalProperties"] is False
    kinds = {
        "JointPositionGroup",
        "GripperGroup",
        "HandGroup",
        "EefDeltaGroup",
        "WaypointGroup",
        "BaseVelocityGroup",
    }
    assert kinds <= set(schema["$defs"])
    assert "limits" in schema["$defs"]["JointPositionGroup"]["properties"]


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("embodiment", "nonsense"), ("embodiment", "prompt", "so101")]
)
def test_wrong_usage(arguments):
    assert qwen_vla(*arguments).returncode == 2


def test_help_names_every_command():
    result = qwen_vla("--help")
    assert result.returncode == 0
    for name, _, _ in cli.COMMANDS:
        assert name in result.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["embodiment", "list"], ["embodiment", "prompt", "tiago_base", "--task", "go"]]
)
def test_nothing_heavy_is_imported(arguments):
    code = (
        "import sys\n"
        "from qwen_vla_ros.cli import app\n"
        "try:\n"
        f"    app({arguments!r})\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    ("module", "advice"), [("torch", "pip install"), ("rclpy", "ROS 2"), ("qwen_vla_ros.msg", "make setup")]
)
def test_a_missing_module_is_named(module, advice, monkeypatch):
    def command():
        importlib.import_module(module)

    source = types.ModuleType("a_module_with_a_command")
    source.command = command
    monkeypatch.setitem(sys.modules, source.__name__, source)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(cli, "COMMANDS", (("one", f"{source.__name__}:command", "One."),))
    result = CliRunner().invoke(cli.app, ["one"])
    assert result.exit_code == 1
    assert f"'{module}' is missing" in result.stderr
    assert advice in result.stderr


def test_a_module_of_ours_that_is_missing_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", (("one", "qwen_vla_ros.no_such_room:command", "One."),))
    assert isinstance(CliRunner().invoke(cli.app, ["one"]).exception, ModuleNotFoundError)


def test_starts_in_under_a_second():
    # Time on the processor, least of three: what other processes do meanwhile does not count.
    used = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert qwen_vla("embodiment", "list").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(used) < 1.0, used
