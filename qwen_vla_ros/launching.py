# SPDX-License-Identifier: Apache-2.0
"""What the launch files need of an embodiment.

`ros2` runs in the interpreter that it was installed for, which may have another pydantic than the nodes. So
this module needs yaml alone, reads a few fields and leaves every other check to the nodes.
"""

from __future__ import annotations

import atexit
import copy
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from qwen_vla_ros import resources

SCENES = ("arm", "bimanual", "base", "humanoid")
_BY_ARMS = {"single": "arm", "dual": "bimanual", "none": "base"}
# In Gazebo nobody but ros2_control can serve these; the others are drivers' and navigation's.
_IN_ROS2_CONTROL = (
    "joint_trajectory",
    "follow_joint_trajectory",
    "forward_command",
    "gripper_command",
    "parallel_gripper_command",
    "diff_drive",
    "omni_drive",
)
# The topic of the image in config/rviz.
_PICTURE = "camera/ego/image_raw"
_COMPRESSED = "/compressed"


@dataclass(frozen=True)
class Camera:
    """A camera of the YAML: `size` is width and height [px], `depth` a topic or None."""

    view: str
    topic: str
    compressed: bool
    size: tuple[int, int]
    depth: str | None

    @property
    def base(self) -> str:
        """The topic below which image_transport publishes a compressed image; of a raw one its own."""
        return self.topic.removesuffix(_COMPRESSED) if self.compressed else self.topic


@dataclass(frozen=True)
class Body:
    """The few fields of an embodiment that launch files need.

    Attributes:
        scene: one of `SCENES`.
        controllers: type and topic of each group, in its order.
    """

    file: Path
    name: str
    scene: str
    cameras: tuple[Camera, ...]
    controllers: tuple[tuple[str, str], ...]


def read_body(name_or_path: str) -> Body:
    """Read an embodiment by its name, or by its file, without checking more than what is read.

    Raises:
        ValueError: with file, field, what was found and what was expected.
    """
    file = resources.embodiment_path(name_or_path)
    if file is None:
        known = ", ".join(resources.embodiment_names())
        raise ValueError(f"embodiment: found '{name_or_path}', expected a .yaml file or one of {known}")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: found no readable YAML ({error}), expected an embodiment") from error
    fields = _Fields(file)
    arms = fields.one(data, "prompt.arms", _BY_ARMS)
    scene = fields.one(data, "scene", SCENES) if isinstance(data, dict) and "scene" in data else None
    return Body(
        file=file,
        name=fields.take(data, "name", str, "text"),
        scene=scene or _BY_ARMS[arms],
        cameras=tuple(fields.camera(data, f"cameras[{k}]") for k in fields.items(data, "cameras")),
        controllers=tuple(
            (
                fields.take(data, f"actions[{k}].controller.type", str, "text"),
                fields.take(data, f"actions[{k}].controller.topic", str, "text"),
            )
            for k in fields.items(data, "actions")
        ),
    )


class _Fields:
    """Values by their place in a file, such as `cameras[0].topic`."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def take(self, data: Any, place: str, kind: type, words: str) -> Any:
        value = data
        for step in place.replace("[", ".[").split("."):
            try:
                value = value[int(step[1:-1]) if step.startswith("[") else step]
            except (KeyError, IndexError, TypeError):
                value = None
                break
        if not isinstance(value, kind) or not value:
            self.refuse(place, value, words)
        return value

    def refuse(self, place: str, found: Any, expected: str) -> None:
        shown = "nothing" if found is None else repr(found)
        raise ValueError(f"{self._file}: {place}: found {shown}, expected {expected}")

    def one(self, data: Any, place: str, words: Iterable[str]) -> str:
        value = self.take(data, place, str, f"one of {', '.join(words)}")
        if value not in words:
            self.refuse(place, value, f"one of {', '.join(words)}")
        return str(value)

    def items(self, data: Any, place: str) -> range:
        return range(len(self.take(data, place, list, "a list with an entry")))

    def camera(self, data: Any, place: str) -> Camera:
        entry = self.take(data, place, dict, "a mapping")
        size = self.take(data, f"{place}.size", list, "[width, height]")
        if len(size) != 2 or not all(type(number) is int and number > 0 for number in size):
            self.refuse(f"{place}.size", size, "[width, height]")
        transport = (
            self.one(data, f"{place}.transport", ("raw", "compressed")) if "transport" in entry else ""
        )
        return Camera(
            view=self.take(data, f"{place}.view", str, "text"),
            topic=self.take(data, f"{place}.topic", str, "text"),
            compressed=transport == "compressed",
            size=(size[0], size[1]),
            depth=self.take(data, f"{place}.depth", str, "text") if entry.get("depth") is not None else None,
        )


def absolute(namespace: str, name: str) -> str:
    """A name as a node in the namespace resolves it."""
    return name if name.startswith("/") else "/" + f"{namespace.strip('/')}/{name}".strip("/")


def fastdds_variables() -> tuple[str, ...]:
    """Variables that Fast DDS reads the path of its profile from."""
    # Jazzy's has the older name, of which later ones warn.
    old = ("FASTRTPS_DEFAULT_PROFILES_FILE",) if os.environ.get("ROS_DISTRO") == "jazzy" else ()
    return ("FASTDDS_DEFAULT_PROFILES_FILE", *old)


def fastdds_profile(config: Path, name: str) -> str:
    """Path of a Fast DDS profile in the package's folder `config`, as this ROS reads it."""
    # Fast DDS 2 has other names for some elements, and refuses a file with one that it does not know.
    return str(config / "jazzy" / name if os.environ.get("ROS_DISTRO") == "jazzy" else config / name)


def fastdds_default(config: Path, name: str) -> Any:
    """The profile that the user has set, by whichever name this Fast DDS reads; else the package's own."""
    from launch.substitutions import EnvironmentVariable

    default: Any = fastdds_profile(config, name)
    for variable in reversed(fastdds_variables()):
        default = EnvironmentVariable(variable, default_value=default)
    return default


def temporary_file(content: str, suffix: str) -> str:
    """Path of a file with the content, which is gone when this process ends."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=suffix, delete=False) as file:
        file.write(content)
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name


def rviz_config(config: str, body: Body) -> str:
    """One of our RViz configurations with the robot's first camera in place of `camera/ego/image_raw`.

    In the text and not by remapping: RViz tells by the end of the topic that images are compressed.
    """
    return config.replace(f" {_PICTURE}\n", f" {body.cameras[0].topic}\n")


def gazebo_world(world: str, body: Body, namespace: str) -> str:
    """An SDF world whose cameras have topic and size of the views of their name, and a twin for its depth.

    The same text where no camera has such a name.
    """
    try:
        root = ElementTree.fromstring(world)
    except ElementTree.ParseError:
        return world  # Gazebo reads more than XML, such as prefixes that nobody declared
    changed = False
    cameras = {camera.view: camera for camera in body.cameras}
    for link in root.iter("link"):
        for sensor in link.findall("sensor"):
            camera = cameras.get(sensor.get("name", ""))
            if camera is None:
                continue
            changed = True
            _put(sensor, "topic", absolute(namespace, camera.base))
            for name, size in zip(("width", "height"), camera.size, strict=True):
                _put(sensor, f"camera/image/{name}", str(size))
            if camera.depth is not None:
                depth = copy.deepcopy(sensor)
                depth.set("name", f"{camera.view}_depth")
                depth.set("type", "depth_camera")
                _put(depth, "topic", absolute(namespace, camera.depth))
                _put(depth, "camera/image/format", "R_FLOAT32")
                link.append(depth)
    return ElementTree.tostring(root, encoding="unicode") if changed else world


def _put(sensor: ElementTree.Element, path: str, text: str) -> None:
    part = sensor.find(path)
    if part is None:
        raise ValueError(f"sensor {sensor.get('name')}: found no {path}, expected one to set")
    part.text = text


def gazebo_bridges(body: Body, namespace: str) -> tuple[list[str], list[str]]:
    """Arguments of ros_gz_bridge's parameter_bridge, and of ros_gz_image's image_bridge (none: not needed).

    Raises:
        ValueError: a compressed image has a name that image_transport cannot publish under.
    """
    raw, compressed = [], []
    for k, camera in enumerate(body.cameras):
        if not camera.compressed:
            raw.append(camera.topic)
        elif camera.base == camera.topic:
            raise ValueError(
                f"{body.file}: cameras[{k}].topic: found {camera.topic!r}, expected a name that ends in "
                f"{_COMPRESSED}: ros_gz_image publishes compressed images there"
            )
        else:
            compressed.append(absolute(namespace, camera.base))
        if camera.depth is not None:
            raw.append(camera.depth)
    images = [f"{absolute(namespace, topic)}@sensor_msgs/msg/Image[gz.msgs.Image" for topic in raw]
    return ["/clock@rosgraph_msgs/msg/Clock[gz.msgs.Clock", *images], compressed


def ros2_control(body: Body, namespace: str) -> dict[str, list[str]]:
    """Controllers to start, by the name of their controller manager.

    The names of a controller lie below its own: that of `left/arm_controller/joint_trajectory` is
    `arm_controller`, and its manager lies in `left`.
    """
    found: dict[str, list[str]] = {}
    for kind, topic in body.controllers:
        *above, controller, _ = ("", *topic.split("/"))
        if kind not in _IN_ROS2_CONTROL or not controller:
            continue  # no controller names itself `cmd_vel` alone: something remaps it
        manager = absolute(namespace, "/".join((*above[1:], "controller_manager")))
        found.setdefault(manager, []).append(controller)
    if not found:
        found[absolute(namespace, "controller_manager")] = []
    return {manager: ["joint_state_broadcaster", *dict.fromkeys(names)] for manager, names in found.items()}
