# SPDX-License-Identifier: Apache-2.0
"""The launch files, and what they hand to RViz and Gazebo."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from qwen_vla_ros import launching
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
EXECUTABLES = {
    "robot": {"executor", "policy", "visualizer", "rerun"},
    "sim": {"sim"},
    "gazebo": set(),
    "rviz": set(),
}
ARGUMENTS = {
    "robot": ROBOT,
    "sim": ROBOT | {"model", "task", "seed"},
    "gazebo": ROBOT | {"world", "robot", "headless"},
    "rviz": {
        "namespace",
        "embodiment",
        "rviz_config",
        "fixed_frame",
        "use_sim_time",
        "clock",
        "log_level",
        "fastdds_profile",
    },
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
    own = set()
    for call in calls:
        words = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        if getattr(call.func, "id", "") == "node" and call.args and path.name == "robot.launch.py":
            own.add(call.args[0].value)
        elif words.get("package") == "qwen_vla_ros" and "executable" in words:
            own.add(words["executable"])
    assert own - {None} == EXECUTABLES[name_of(path)]
    executables = (ROOT / "CMakeLists.txt").read_text()
    assert own - {None} <= set(executables.partition("foreach(_executable ")[2].partition(")")[0].split())
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


def test_cameras_of_gazebo_are_fitted_to_the_embodiment(write_body):
    world = (ROOT / "config/gazebo/arm.sdf").read_text()
    fitted = launching.gazebo_world(world, launching.read_body("franka_panda"), "left")
    (sensor,) = ElementTree.fromstring(fitted).iter("sensor")
    assert sensor.findtext("topic") == "/left/camera/ego/image_raw"
    assert sensor.findtext("camera/image/width") == "128"
    body = write_body(topic="/head/compressed", transport="compressed", depth="/head/depth", size=[64, 48])
    image, depth = ElementTree.fromstring(launching.gazebo_world(world, body, "left")).iter("sensor")
    assert (image.get("type"), image.findtext("topic")) == ("camera", "/head")
    assert (depth.get("type"), depth.findtext("topic")) == ("depth_camera", "/head/depth")
    assert depth.findtext("camera/image/format") == "R_FLOAT32"
    assert depth.findtext("camera/image/height") == "48"


@pytest.mark.parametrize("world", ["<sdf><world name='lab'/></sdf>", "<sdf><gz:own/></sdf>"])
def test_a_world_without_our_cameras_is_left_as_it_is(world):
    """What it refers to lies beside it; and Gazebo reads more than XML."""
    assert launching.gazebo_world(world, launching.read_body("franka_panda"), "left") == world


@pytest.mark.parametrize("distro", ["kilted", "jazzy"])
def test_a_profile_that_the_user_has_set_wins(distro, monkeypatch):
    # launch is not among the ROS wheels; it looks when a launch file runs, this at once.
    look = SimpleNamespace(
        EnvironmentVariable=lambda name, default_value: os.environ.get(name, default_value)
    )
    monkeypatch.setitem(sys.modules, "launch", SimpleNamespace(substitutions=look))
    monkeypatch.setitem(sys.modules, "launch.substitutions", look)
    monkeypatch.setenv("ROS_DISTRO", distro)
    names = launching.fastdds_variables()
    for name in names:
        monkeypatch.delenv(name, raising=False)
    ours = launching.fastdds_profile(ROOT / "config", "fastdds.xml")
    assert launching.fastdds_default(ROOT / "config", "fastdds.xml") == ours
    monkeypatch.setenv(names[-1], "/etc/mine.xml")
    assert launching.fastdds_default(ROOT / "config", "fastdds.xml") == "/etc/mine.xml"


@pytest.fixture
def write_body(tmp_path):
    """Franka Panda with changes to its camera, as launch files read it."""

    def write(**changes):
        content = yaml.safe_load((ROOT / "embodiments/franka_panda.yaml").read_text())
        content["cameras"][0] |= changes
        file = tmp_path / "robot.yaml"
        file.write_text(yaml.safe_dump(content))
        return launching.read_body(str(file))

    return write


def test_launch_files_read_the_same_as_the_nodes():
    for name in list_embodiments():
        read, loaded = launching.read_body(name), load_embodiment(name)
        assert (read.name, len(read.cameras)) == (loaded.name, len(loaded.cameras))
        for camera, other in zip(read.cameras, loaded.cameras, strict=True):
            assert (camera.view, camera.topic, camera.size) == (other.view, other.topic, other.size)
            assert (camera.compressed, camera.depth) == (other.transport == "compressed", other.depth)
        assert read.controllers == tuple((g.controller.type, g.controller.topic) for g in loaded.actions)
        assert read.scene in launching.SCENES
        assert loaded.scene in (None, read.scene)


@pytest.mark.parametrize(
    ("embodiment", "scene"),
    [
        ("franka_panda", "arm"),
        ("aloha_viperx", "bimanual"),
        ("tiago_base", "base"),
        ("unitree_g1", "humanoid"),
        ("unitree_h1", "humanoid"),
        ("fourier_gr1_joints", "humanoid"),
    ],
)
def test_the_scene_is_that_of_the_body(embodiment, scene):
    assert launching.read_body(embodiment).scene == scene


def test_what_launch_files_import_needs_no_pydantic_and_no_numpy(tmp_path):
    """apt's `ros2` runs in the system's Python: that of Ubuntu 24.04 has pydantic 1."""
    for name in ("numpy", "pydantic", "typer"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')")
    (tmp_path / "ros2cli").mkdir()
    (tmp_path / "ros2cli/__init__.py").touch()
    (tmp_path / "ros2cli/command.py").write_text("class CommandExtension: pass")
    program = (
        "import qwen_vla_ros.ros2_vla, pathlib; from qwen_vla_ros import launching, resources\n"
        "for name in resources.embodiment_names(): launching.read_body(name)\n"
        "print(launching.temporary_file('text', '.sdf'))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert not Path(told.stdout.strip()).exists(), "a temporary file is left behind"
    # And the launch files import no other module of ours.
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qwen_vla_ros"):
                assert (node.module, [name.name for name in node.names]) == ("qwen_vla_ros", ["launching"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("arms: single", "arms: triple", "prompt.arms: found 'triple', expected one of single, dual, none"),
        ("name: franka", "nam: franka", "name: found nothing, expected text"),
        ("topic: camera/ego/image_raw", "topic: 3", "cameras[0].topic: found 3, expected text"),
        ("size: [128, 128]", "size: [128]", "cameras[0].size: found [128], expected [width, height]"),
        (
            "transport: raw",
            "transport: h264",
            "cameras[0].transport: found 'h264', expected one of raw, comp",
        ),
        ("type: forward_command, ", "", "actions[1].controller.type: found nothing, expected text"),
        ("schema: 1", "scene: sea", "scene: found 'sea', expected one of arm, bimanual, base, humanoid"),
        ("schema: 1", "[", "found no readable YAML"),
    ],
)
def test_errors_name_file_and_field(old, new, message, tmp_path):
    text = (ROOT / "embodiments/franka_panda.yaml").read_text()
    assert old in text
    file = tmp_path / "robot.yaml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):
        launching.read_body(str(file))


def test_unknown_embodiments_are_named():
    with pytest.raises(ValueError, match=r"found 'panda', expected a \.yaml file or one of .*franka_panda"):
        launching.read_body("panda")
    with pytest.raises(ValueError, match=r"nowhere\.yaml: found no readable YAML"):
        launching.read_body("nowhere.yaml")


@pytest.mark.parametrize(
    ("embodiment", "controllers"),
    [
        ("lekiwi", {"": ["arm_controller", "gripper_controller", "base_controller"]}),
        ("tm12", {"": ["tmr_arm_controller"]}),
        ("turtlebot4", {"": []}),
        (
            "mobile_aloha",
            {
                "follower_left/": ["arm_controller", "gripper_controller"],
                "follower_right/": ["arm_controller", "gripper_controller"],
                "": ["mobile_base"],
            },
        ),
    ],
)
def test_gazebo_starts_the_controllers_of_the_embodiment(embodiment, controllers):
    assert launching.ros2_control(launching.read_body(embodiment), "left") == {
        f"/left/{above}controller_manager": ["joint_state_broadcaster", *names]
        for above, names in controllers.items()
    }


def test_every_controller_that_is_documented_as_one_of_ros2_control_is_started():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", (ROOT / "docs/embodiments.md").read_text(), re.M)
    documented = {kind for kind, where in rows if re.search(r"\w_controller\b", where)}
    assert {"omni_drive", "diff_drive", "joint_trajectory"} <= documented
    assert documented <= set(launching._IN_ROS2_CONTROL)


def test_gazebo_bridges_raw_compressed_and_depth_images(write_body):
    clock = "/clock@rosgraph_msgs/msg/Clock[gz.msgs.Clock"
    image = "@sensor_msgs/msg/Image[gz.msgs.Image"
    body = write_body(depth="camera/ego/depth")
    topics = [f"/left/camera/ego/{name}{image}" for name in ("image_raw", "depth")]
    assert launching.gazebo_bridges(body, "left") == ([clock, *topics], [])
    body = write_body(topic="/head/image/compressed", transport="compressed", depth="/head/depth")
    assert launching.gazebo_bridges(body, "left") == ([clock, f"/head/depth{image}"], ["/head/image"])
    with pytest.raises(ValueError, match=r"cameras\[0\]\.topic: found '/head/jpeg', expected .*/compressed"):
        launching.gazebo_bridges(write_body(topic="/head/jpeg", transport="compressed"), "")


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "embodiment", ["franka_panda", "stretch", "galaxea_r1", "mobile_aloha", "turtlebot4"]
)
def test_rviz_shows_the_first_camera(name, embodiment):
    body = launching.read_body(embodiment)
    text = launching.rviz_config((ROOT / f"config/rviz/{name}.rviz").read_text(), body)
    displays = yaml.safe_load(text)["Visualization Manager"]["Displays"]
    (image,) = (display for display in displays if display["Class"].endswith("/Image"))
    assert image["Topic"]["Value"] == body.cameras[0].topic


@pytest.fixture
def ros2(ros_environment):
    needs_launch()
    program = shutil.which("ros2", path=ros_environment["PATH"])
    if program is None:
        pytest.skip("ros2 is not installed: ros2 launch was not tried")
    return program


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_ros2_launch_shows_the_arguments(path, ros2, ros_environment):
    told = subprocess.run(
        [ros2, "launch", str(path), "--show-args"], env=ros_environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert set(re.findall(r"^ +'(\w+)':$", told.stdout, re.M)) == ARGUMENTS[name_of(path)]


def test_ctrl_c_ends_ros2_launch_and_all_its_processes(ros2, spawn, wait_for):
    options = ("backend:=scripted", "embodiment:=franka_panda", "autostart:=false", "visualizer:=false")
    process = spawn(ros2, ["launch", str(ROOT / "launch/robot.launch.py"), *options])
    children = [
        int(process.wait_for_output(rf"\[{name}-\d+\]: process started with pid \[(\d+)\]", 30.0)[1])
        for name in ("executor", "policy")
    ]
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30.0) == 0
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 5.0, "the nodes to end")
