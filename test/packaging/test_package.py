# SPDX-License-Identifier: Apache-2.0
"""Facts that several files state must agree, and the tools must say what is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import qwen_vla_ros

ROOT = Path(__file__).resolve().parents[2]


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_versions_agree():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.findtext("version") == qwen_vla_ros.__version__
    assert f'version="{qwen_vla_ros.__version__}"' in (ROOT / "setup.py").read_text()
    assert re.search(
        rf"^## \[{re.escape(qwen_vla_ros.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_every_interface_is_generated():
    listed = set(re.findall(r"^\s+((?:msg|srv|action)/\S+)", (ROOT / "CMakeLists.txt").read_text(), re.M))
    found = {
        str(path.relative_to(ROOT))
        for folder in ("msg", "srv", "action")
        for path in (ROOT / folder).iterdir()
    }
    assert listed == found


def test_robot_models_are_those_that_the_simulation_reads():
    from qwen_vla_ros.embodiment import list_embodiments, load_embodiment
    from qwen_vla_ros.sim import assets

    listed = {line for line in (ROOT / "tools/assets.txt").read_text().split("\n") if line and line[0] != "#"}
    tasks = {requirement for _, requirement, _ in assets._MODELS.values()}
    bodies = map(load_embodiment, list_embodiments())
    others = {body.simulation.package for body in bodies if body.simulation and body.simulation.package}
    # What is large and stands for one robot only is left to whoever wants it.
    assert listed == tasks | others - {"example-robot-data==6.0.0"}


def test_repository_names_no_machine_and_no_registry():
    words = [
        "/wor" + "k/",
        "/ro" + "ot/",
        "/ho" + "me/",
        "pypi.o" + "rg",
        "pythonhost" + "ed",
        "download.pytor" + "ch",
    ]
    tracked = run(["git", "ls-files", "-z"], ROOT)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" in content:
            continue
        for word in words:
            assert word.encode() not in content, f"{name} contains {word}"


def test_installed_nodes_are_found(ros_environment):
    prefixes = ros_environment["AMENT_PREFIX_PATH"].split(os.pathsep)
    folder = next(
        Path(prefix) / "lib/qwen_vla_ros"
        for prefix in prefixes
        if (Path(prefix) / "lib/qwen_vla_ros").is_dir()
    )
    assert {path.name for path in folder.iterdir() if os.access(path, os.X_OK)} == {
        "executor",
        "policy",
        "rerun",
        "sim",
        "visualizer",
    }


def test_installed_command_runs(ros_environment):
    prefixes = ros_environment["AMENT_PREFIX_PATH"].split(os.pathsep)
    program = next(path for path in (Path(prefix) / "bin/qwen-vla" for prefix in prefixes) if path.is_file())
    told = run([sys.executable, str(program), "embodiment", "list"], ROOT)
    assert told.returncode == 0, told.stderr
    assert "franka_panda" in told.stdout


def test_ros2_finds_its_command(ros_environment):
    """ros2cli itself is not among the ROS wheels: what it looks for is."""
    sites = [Path(part) for part in ros_environment["PYTHONPATH"].split(os.pathsep)]
    points = entry_points(group="ros2cli.command", name="vla")
    (point,) = points
    module = ROOT / (point.value.partition(":")[0].replace(".", "/") + ".py")
    assert f"class {point.value.partition(':')[2]}(CommandExtension)" in module.read_text()
    assert any((site / "qwen_vla_ros_ros2cli.egg-info").is_dir() for site in sites)


def test_distribution_holds_data_and_command(tmp_path):
    """What a GPU server without ROS gets from `pip install`."""
    source = tmp_path / "source"
    names = run(["git", "ls-files", "-z"], ROOT)
    if names.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("test/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    target = tmp_path / "prefix"
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    built = run(
        [*pip, "--no-deps", "--no-build-isolation", "--no-index", "--prefix", str(target), str(source)],
        tmp_path,
    )
    assert built.returncode == 0, built.stderr
    site = next(target.glob("lib/python3*/site-packages"))
    program = (
        "import qwen_vla_ros, qwen_vla_ros.resources as r, qwen_vla_ros.embodiment as e;"
        "print(qwen_vla_ros.__file__); print(r.share_directory()); print(*e.list_embodiments())"
    )
    told = run([sys.executable, "-c", program], tmp_path, PYTHONPATH=str(site), AMENT_PREFIX_PATH="")
    assert told.returncode == 0, told.stderr
    module, share, bodies = told.stdout.splitlines()
    assert module.startswith(str(site))
    assert share == str(target / "share/qwen_vla_ros")
    assert "franka_panda" in bodies.split()
    assert (target / "bin/qwen-vla").is_file()
    assert (target / "share/qwen_vla_ros/config/fastdds.xml").is_file()


@pytest.fixture
def bare_checkout(tmp_path):
    """The tools in a folder that has no environment yet."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    return tmp_path


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ROS": "humble"}, "ROS=humble: expected kilted or jazzy"),
        ({"ROS": "kilted", "PYTHON": "python0.1"}, "no 'python0.1' found"),
    ],
)
def test_setup_says_what_is_wrong(bare_checkout, environment, message):
    result = run(["tools/setup"], bare_checkout, **environment)
    assert result.returncode == 1
    assert message in result.stderr


def test_setup_names_the_packages_to_install(bare_checkout):
    programs = bare_checkout / "bin"
    programs.mkdir()
    for name in ("bash", "cat", "cut", "dirname", "flock", "head", "mkdir", "sed", "sort"):
        (programs / name).symlink_to(shutil.which(name))
    result = run(["tools/setup"], bare_checkout, PATH=str(programs), ROS="kilted", PYTHON=sys.executable)
    assert result.returncode == 1
    assert "setup: missing: a C++ compiler" in result.stderr
    line = result.stderr.splitlines()[-1]
    assert "sudo apt install" in line
    assert {"cmake", "g++", "make"} <= set(line.split())


def test_with_ros_asks_for_setup(bare_checkout):
    result = run(["tools/with_ros", "true"], bare_checkout)
    assert result.returncode == 1
    assert "run 'make setup' first" in result.stderr
