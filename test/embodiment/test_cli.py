# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla embodiment`, and the command that it is part of."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import subprocess
import sys
import types
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from qwen_vla_ros import cli, resources
from qwen_vla_ros.embodiment import list_embodiments, load_embodiment

HEAVY = ("torch", "transformers", "rclpy", "mujoco", "ruckig", "matplotlib", "cv2")
CHECKPOINT = resources.checkpoints_directory() / "qwen_vla_tiny"
URDF = resources.embodiments_directory() / "kinematics" / "widowx_250s.urdf"


def qwen_vla(*arguments, input=None):
    result = CliRunner().invoke(
        cli.app, list(arguments), input=input, env={"COLUMNS": "200", "NO_COLOR": "1"}
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return SimpleNamespace(returncode=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def process(*arguments):
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


def test_an_error_ends_a_process_without_traceback():
    result = process("embodiment", "show", "unitree_g2")
    assert result.returncode == 1
    assert "unitree_g1" in result.stderr
    assert "Traceback" not in result.stderr


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


def test_nothing_heavy_is_imported(tmp_path):
    commands = [
        ["--help"],
        ["embodiment", "list"],
        ["embodiment", "prompt", "tiago_base", "--task", "go"],
        ["embodiment", "new", "robot", "--urdf", str(URDF), "--folder", str(tmp_path)],
        ["embodiment", "validate", str(tmp_path / "robot.yaml"), "--urdf", str(URDF)],
        ["doctor", "--embodiment", "widowx", "--urdf", str(URDF)],
        ["doctor", "--embodiment", "tiago_base", "--checkpoint", str(CHECKPOINT)],
    ]
    code = (
        "import sys\n"
        "from qwen_vla_ros.cli import app\n"
        f"for arguments in {commands!r}:\n"
        "    try:\n"
        "        app(arguments)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, (arguments, end.code)\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
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


def test_validate_against_a_urdf(tmp_path):
    file = str(resources.embodiments_directory() / "widowx.yaml")
    result = qwen_vla("embodiment", "validate", file, "--urdf", str(URDF))
    assert result.returncode == 0, result.stdout
    assert f"{file}: valid" in result.stdout
    other = tmp_path / "widowx.yaml"
    other.write_text(
        (resources.embodiments_directory() / "widowx.yaml")
        .read_text()
        .replace("kinematics/", f"{URDF.parent}/")
        .replace("[-2.14675, 1.6057]", "[-2.14675, 2.6057]")
    )
    line = next(k for k, text in enumerate(other.read_text().splitlines(), 1) if "2.6057" in text)
    result = qwen_vla("embodiment", "validate", str(other), "--urdf", str(URDF))
    assert result.returncode == 1
    assert re.search(rf"^{other}:{line}: .*elbow.*narrow the limits.*\[URDF_POSITION\]$", result.stdout, re.M)
    (report,) = json.loads(
        qwen_vla("embodiment", "validate", str(other), "--urdf", str(URDF), "--json").stdout
    )
    assert report["valid"] is False
    assert "URDF_POSITION" in [fault["code"] for fault in report["faults"]]
    absent = qwen_vla("embodiment", "validate", file, "--urdf", str(tmp_path / "no.urdf"))
    assert absent.returncode == 1
    assert "no.urdf: cannot be read" in absent.stderr


def test_doctor():
    result = qwen_vla("doctor", "--embodiment", "tiago_base", "--checkpoint", str(CHECKPOINT))
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[-1].startswith("tiago_base: 0 errors, 0 warnings (against checkpoint")
    result = qwen_vla("doctor", "--embodiment", "so101", "--checkpoint", str(CHECKPOINT))
    assert result.returncode == 1
    assert re.search(r"so101\.yaml:\d+: name: .*\[STATISTICS_MISSING\]", result.stdout)
    found = json.loads(
        qwen_vla("doctor", "--embodiment", "so101", "--checkpoint", str(CHECKPOINT), "--json").stdout
    )
    assert [finding["code"] for finding in found["findings"]] == ["STATISTICS_MISSING"]
    assert qwen_vla("doctor", "--embodiment", "so101").returncode == 0
    absent = qwen_vla("doctor", "--embodiment", "so101", "--checkpoint", "/nowhere")
    assert absent.returncode == 1
    assert "/nowhere: no such folder" in absent.stderr


def test_doctor_counts_warnings_when_told_to(tmp_path):
    text = (resources.embodiments_directory() / "so101.yaml").read_text()
    file = tmp_path / "so101.yaml"
    file.write_text(text.replace("execute_steps: 8", "execute_steps: 16"))
    assert qwen_vla("doctor", "--embodiment", str(file)).returncode == 0
    strict = qwen_vla("doctor", "--embodiment", str(file), "--strict")
    assert strict.returncode == 1
    assert "warning: execute_steps: " in strict.stdout


def test_doctor_compares_with_the_urdf_that_the_embodiment_names():
    result = qwen_vla("doctor", "--embodiment", "widowx")
    assert result.returncode == 0, result.stdout
    assert str(URDF) in result.stdout.splitlines()[-1]


def test_new_from_flags(tmp_path):
    arguments = ["embodiment", "new", "robot", "--urdf", str(URDF), "--folder", str(tmp_path)]
    result = qwen_vla(
        *arguments, "--tag", "My Robot", "--rate", "5", "--controller", "forward_command",
        "--view", "ego=head/image", "--view", "cam_wrist=wrist/image", "--leave-out", "wrist_*",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "left out: wrist_angle, wrist_rotate" in result.stdout
    body = load_embodiment(tmp_path / "robot.yaml")
    assert (body.name, body.prompt.robot_tag, body.control_rate) == ("robot", "My Robot", 5.0)
    assert [camera.topic for camera in body.cameras] == ["head/image", "wrist/image"]
    assert body.joints == ("waist", "shoulder", "elbow", "forearm_roll")
    assert body.actions[0].controller.type == "forward_command"
    again = qwen_vla(*arguments)
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert qwen_vla(*arguments, "--force").returncode == 0
    assert load_embodiment(tmp_path / "robot.yaml").prompt.robot_tag == "widowx_250s"


def test_new_makes_its_folder(tmp_path):
    folder, occupied = tmp_path / "my" / "robots", tmp_path / "file"
    arguments = ["embodiment", "new", "robot", "--no-ask", "--urdf", str(URDF), "--folder"]
    result = qwen_vla(*arguments, str(folder))
    assert result.returncode == 0, result.stderr
    assert load_embodiment(folder / "robot.yaml").name == "robot"
    occupied.write_text("")
    refused = qwen_vla(*arguments, str(occupied))
    assert refused.returncode == 1
    assert "robot.yaml: cannot be written" in refused.stderr
    assert "choose another --folder" in refused.stderr


def test_new_asks(tmp_path):
    answers = "robot\nMy Robot\n7.5\njoint_state\nomni_drive\nego=head/image\n"
    result = qwen_vla(
        "embodiment", "new", "--ask", "--urdf", str(URDF), "--folder", str(tmp_path), input=answers
    )
    assert result.returncode == 0, result.stderr
    body = load_embodiment(tmp_path / "robot.yaml")
    assert (body.prompt.robot_tag, body.control_rate, body.prompt.mobile_base) == ("My Robot", 7.5, True)
    assert [group.controller.type for group in body.actions] == ["joint_state", "omni_drive"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Robot 1"], "such as 'robot_1'"),
        (["robot", "--controller", "telepathy"], "joint_trajectory or forward_command"),
        (["robot", "--base", "legs"], "none or diff_drive"),
        (["robot", "--view", "ego"], "VIEW=TOPIC"),
        (["robot", "--rate", "0"], "control_rate"),
        (["robot", "--leave-out", "*"], "found no joint"),
    ],
)
def test_new_refuses(tmp_path, arguments, message):
    result = qwen_vla("embodiment", "new", *arguments, "--urdf", str(URDF), "--folder", str(tmp_path))
    assert result.returncode == 1
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
