# SPDX-License-Identifier: Apache-2.0
"""The launch files, and what they hand to RViz and Gazebo."""

from __future__ import annotations

import ast
import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from qwen_vla_ros.embodiment import list_embodiments, load_embodiment

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "launch").glob("*.launch.py"))
ROBOT = {
    "namespace",
    "embodiment",
    "checkpoint",
    "device",
    "backend",
    "params_file",
    "robot_description",
    "use_sim_time",
    "autostart",
    "dry_run",
    "visualizer",
    "rviz",
    "foxglove",
    "rerun",
    "log_level",
    "fastdds_profile",
}
ARGUMENTS = {
    "robot": ROBOT,
    "sim": ROBOT | {"model", "task", "seed"},
    "gazebo": ROBOT | {"world", "robot", "headless"},
    "rviz": {"namespace", "embodiment", "rviz_config", "fixed_frame", "use_sim_time", "log_level"},
}
CLASSES = ("arm", "base", "bimanual", "humanoid")


def name_of(path: Path) -> str:
    return path.name.partition(".")[0]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(name_of(path), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needs_launch() -> None:
    # The checkout has a folder of the name: ask for what only the real package has.
    for module in ("launch.actions", "launch_ros.actions"):
        pytest.importorskip(module, reason=f"{module} is not among the ROS wheels; apt has it")


def test_there_are_the_files_that_are_documented():
    assert {name_of(path) for path in FILES} == set(ARGUMENTS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_compile_and_name_executables_that_exist(path):
    tree = ast.parse(path.read_text())
    compile(tree, str(path), "exec")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    own = {
        call.args[0].value
        for call in calls
        if getattr(call.func, "id", "") == "node" and len(call.args) > 0 and path.name == "robot.launch.py"
    }
    executables = (ROOT / "CMakeLists.txt").read_text()
    for name in own:
        assert name in executables.partition("foreach(_executable ")[2].partition(")")[0].split()
    assert any(
        isinstance(node, ast.FunctionDef) and node.name == "generate_launch_description" for node in tree.body
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arguments_are_declared_and_used(path):
    """What each file declares itself; those of an included file come on top."""
    tree = ast.parse(path.read_text())
    words = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    for name in ARGUMENTS[name_of(path)] - (ROBOT if name_of(path) in ("sim", "gazebo") else set()):
        assert words.count(name) >= 2, f"{name} is declared, or used, nowhere in {path.name}"


@pytest.mark.parametrize("name", ["gazebo", "sim"])
def test_what_can_fail_comes_before_what_is_started(name):
    """launch ends with an error when something raises, and leaves alone what it has started before."""
    tree = ast.parse((ROOT / f"launch/{name}.launch.py").read_text())
    describe = next(n for n in tree.body if getattr(n, "name", "") == "generate_launch_description")
    lines = {"OpaqueFunction": [], "IncludeLaunchDescription": []}
    for node in ast.walk(describe):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in lines:
            lines[node.func.id].append(node.lineno)
    assert min(lines["OpaqueFunction"]) < min(lines["IncludeLaunchDescription"])


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_launch_takes_the_arguments(path, ros_environment):
    needs_launch()
    description = load(path).generate_launch_description()
    assert {argument.name for argument in description.get_launch_arguments()} == ARGUMENTS[name_of(path)]


def test_rviz_shows_what_the_nodes_publish():
    from qwen_vla_ros.nodes import sim_node, visualizer_node

    sources = "".join(Path(module.__file__).read_text() for module in (sim_node, visualizer_node))
    assert {path.stem for path in (ROOT / "config/rviz").iterdir()} == set(CLASSES)
    for path in (ROOT / "config/rviz").iterdir():
        config = yaml.safe_load(path.read_text())["Visualization Manager"]
        topics = {
            display["Name"]: display.get("Topic", display.get("Description Topic"))["Value"]
            for display in config["Displays"]
            if "Topic" in display or "Description Topic" in display
        }
        assert topics["Plan"] == "visualizer/plan"
        for topic in topics.values():
            published = topic.replace("visualizer/", "~/")
            assert f'"{published}"' in sources or topic.startswith("camera/")
        ego = next(display for display in config["Displays"] if display["Name"] == "ego")
        # Cameras publish best effort: a reliable subscription would see nothing.
        assert ego["Topic"]["Reliability Policy"] == "Best Effort"
    views = {camera.topic for name in list_embodiments() for camera in load_embodiment(name).cameras}
    assert "camera/ego/image_raw" in views


def test_gazebo_worlds_are_sound():
    worlds = {path.stem: ElementTree.parse(path).getroot() for path in (ROOT / "config/gazebo").iterdir()}
    assert set(worlds) == set(CLASSES)
    for name, root in worlds.items():
        assert root.tag == "sdf"
        assert root.find("world").get("name") == name
        systems = {plugin.get("name").rpartition("::")[2] for plugin in root.iter("plugin")}
        assert systems == {"Physics", "UserCommands", "SceneBroadcaster", "Sensors"}
        names = [model.get("name") for model in root.iter("model")]
        assert len(names) == len(set(names)) > 3
        for sensor in root.iter("sensor"):
            assert sensor.get("name") == "ego"
            assert sensor.find("topic") is not None
            assert sensor.find("camera/image/width") is not None


def test_cameras_of_gazebo_are_fitted_to_the_embodiment():
    needs_launch()
    gazebo = load(ROOT / "launch/gazebo.launch.py")
    fitted = Path(gazebo.fit(ROOT / "config/gazebo/arm.sdf", load_embodiment("franka_panda"), "left"))
    sensor = next(ElementTree.parse(fitted).iter("sensor"))
    fitted.unlink()
    assert sensor.findtext("topic") == "/left/camera/ego/image_raw"
    assert sensor.findtext("camera/image/width") == "128"
