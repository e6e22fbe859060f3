# SPDX-License-Identifier: Apache-2.0
"""The plan, the cameras and the joints in the Rerun viewer, or in a file for it."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped
from nav_msgs.msg import Path as PathMessage
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from qwen_vla_ros.embodiment import Embodiment
from qwen_vla_ros.msg import ActionChunk, ExecutorStatus

from . import qos
from .base_pose import MESSAGES, pose_of
from .images import ImageError, encoding_of, rgb_to_jpeg, to_rgb
from .joint_positions import joint_positions
from .lifecycle import BodyNode, ConfigurationError, declare, run, seconds

APPLICATION = "qwen_vla_ros"
TIMELINE = "robot_time"
PORT = 9876
# Colours of joints, in turn; what is commanded is lighter.
TONES = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75))
# More lines than that have no legend: it would hide them.
LEGEND = 4
# How long the viewer may take to listen [s].
PATIENCE = 30.0
# Of the line of a path that was handed over [m].
PATH_RADIUS = 0.015


class RerunNode(BodyNode):
    """See docs/visualisation.md for what is shown; it draws the markers of `visualizer`."""

    def __init__(self):
        super().__init__("rerun")
        declare(
            self,
            "output",
            "",
            "File .rrd to write, or URL of a viewer, rerun+http://HOST:9876/proxy; empty: start a viewer",
        )
        declare(
            self, "rate", 20.0, "At most so many pictures and states of each source a second", 0.1, 1000.0
        )
        declare(self, "jpeg_quality", 80, "Of raw pictures", 1, 100)
        self._inlets: list = []
        self._viewer: subprocess.Popen | None = None
        self._recording: Any = None

    def configure(self, embodiment: Embodiment) -> None:
        try:
            import rerun
        except ImportError as error:
            raise ConfigurationError("the package rerun-sdk is missing: pip install rerun-sdk") from error
        # Else what is wrong with a call is a warning.
        rerun.set_strict_mode(True)
        self._rerun = rerun
        self._logged: dict[str, float] = {}
        self._joint: dict[str, float] = {}
        self._pose_frame = "odom"
        self._said: list[str] = []
        self._recording = rerun.RecordingStream(APPLICATION)
        self._open(self.value("output"))
        self._framed = False
        self._recording.send_blueprint(self._blueprint(embodiment, {}))
        self._recording.log("scene", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        for camera in embodiment.cameras:
            kind = CompressedImage if camera.transport == "compressed" else Image
            show = partial(self._on_image, view=camera.view, rotate=camera.rotate)
            self._listen(kind, camera.topic, show, qos.IMAGE)
        for topic in embodiment.state.joint_states:
            keep = joint_positions(embodiment, topic, partial(self._on_joints, topic))
            self._listen(JointState, topic, keep, qos.SENSOR)
        base = embodiment.state.base
        if base is not None:
            self._listen(MESSAGES[base.type], base.topic, self._on_pose, qos.SENSOR)
        for group in embodiment.actions:
            names = list(getattr(group, "joints", ())) or ["v", "w"]
            if group.controller.type == "omni_drive":
                names = ["vx", "vy", "w"]
            tones = np.array([TONES[k % len(TONES)] for k in range(len(names))])
            for part, share in (("measured", 1.0), ("commanded", 0.5)):
                lines = rerun.SeriesLines(
                    names=[f"{name} {part}" for name in names],
                    colors=np.round(255 - share * (255 - tones)).astype(np.uint8),
                )
                self._recording.log(["groups", group.name, part], lines, static=True)
            reader = command_reader(group)
            if reader is not None:
                kind, read = reader
                show = partial(self._on_command, name=group.name, read=read)
                self._listen(kind, group.controller.topic, show, qos.COMMAND)
            elif group.controller.type == "path":
                self._listen(
                    PathMessage, group.controller.topic, partial(self._on_path, name=group.name), qos.COMMAND
                )
        self._listen(MarkerArray, "visualizer/plan", self._on_markers, qos.RELIABLE)
        self._listen(ActionChunk, "action_chunk", self._on_chunk, qos.RELIABLE)
        self._listen(ExecutorStatus, "executor_status", self._on_status, qos.LATCHED)

    def activate(self) -> None:
        pass  # `active` is what the callbacks look at

    def deactivate(self) -> None:
        self._recording.flush()

    def cleanup(self) -> None:
        for entity in self._inlets:
            self.destroy_subscription(entity)
        self._inlets = []
        if self._recording is not None:
            self._recording.disconnect()
            self._recording = None
        if self._viewer is not None:
            self._viewer.terminate()
            self._viewer.wait()
            self._viewer = None

    def _listen(self, kind: type, topic: str, callback: Callable, profile: Any) -> None:
        def hear(message: Any) -> None:
            if self.active:
                callback(message)

        self._inlets.append(self.create_subscription(kind, topic, hear, profile))

    # Where it goes

    def _open(self, output: str) -> None:
        if "://" in output:
            self._recording.connect_grpc(output)
        elif output:
            path = Path(output)
            if path.suffix != ".rrd" or not path.absolute().parent.is_dir():
                raise ConfigurationError(
                    f"output: found {output!r}, expected a .rrd file in a folder that exists, "
                    "a URL rerun+http://HOST:9876/proxy, or nothing"
                )
            self._recording.save(str(path))
            self.get_logger().info(f"writing {path.absolute()}")
        else:
            # A viewer that is open already takes this robot, too.
            if not listening():
                self._start_viewer()
            self._recording.connect_grpc(f"rerun+http://127.0.0.1:{PORT}/proxy")

    def _start_viewer(self) -> None:
        """Our own process, that ends with the node and hears this computer alone."""
        place = importlib.util.find_spec("rerun_cli")
        program = Path(place.origin).with_name("rerun") if place and place.origin else Path("rerun")
        self._viewer = subprocess.Popen(
            [str(program), "--bind", "127.0.0.1", "--port", str(PORT), "--hide-welcome-screen"],
            # As the SDK starts it: no question, and no word to its makers.
            env={**os.environ, "RERUN_APP_ONLY": "true"},
        )
        deadline = time.monotonic() + PATIENCE
        while not listening():
            if self._viewer.poll() is not None or self.ending.is_set() or time.monotonic() > deadline:
                raise ConfigurationError(
                    f"the Rerun viewer ({program}) does not run here; without a screen give "
                    "output:=FILE.rrd, or the URL of a viewer elsewhere"
                )
            self.ending.wait(0.1)

    def _blueprint(self, embodiment: Embodiment, eye: dict[str, Any]) -> Any:
        """What is where on the screen. `eye`: arguments of the view of the plan."""
        import rerun.blueprint as rrb

        pictures = [
            rrb.Spatial2DView(origin=f"cameras/{camera.view}", name=camera.view)
            for camera in embodiment.cameras
        ]
        series = [
            rrb.TimeSeriesView(
                origin=f"groups/{group.name}",
                name=group.name,
                plot_legend=rrb.PlotLegend(visible=2 * len(getattr(group, "joints", ())) <= LEGEND),
            )
            for group in embodiment.actions
        ]
        return rrb.Blueprint(
            rrb.Horizontal(
                rrb.Vertical(
                    rrb.Spatial3DView(origin="scene", name="plan", **eye),
                    rrb.TextDocumentView(origin="status", name="status"),
                    row_shares=[4, 1],
                ),
                rrb.Vertical(
                    rrb.Grid(*pictures),
                    rrb.Tabs(*series),
                    rrb.TimeSeriesView(origin="latency", name="latency [s]"),
                ),
                column_shares=[3, 2],
            ),
            collapse_panels=True,
        )

    def _frame(self, points: np.ndarray) -> None:
        """Look at the whole robot, shape (n, 3), from its left in front. Older versions look anywhere."""
        import rerun.blueprint as rrb

        self._framed = True
        if not hasattr(rrb, "EyeControls3D"):
            return
        low, high = points.min(axis=0), points.max(axis=0)
        middle, size = (low + high) / 2, float(np.linalg.norm(high - low))
        eye = rrb.EyeControls3D(position=middle + size * np.array([1.0, 0.9, 0.4]), look_target=middle)
        self._recording.send_blueprint(self._blueprint(self.embodiment, {"eye_controls": eye}))

    # What is heard

    def _log(self, path: Sequence[str], stamp: float, *what: Any) -> None:
        """At robot time `stamp` [s]: of the simulation, or since 1970."""
        kind = "duration" if self.value("use_sim_time") else "timestamp"
        self._recording.set_time(TIMELINE, **{kind: stamp})
        self._recording.log(list(path), *what)

    def _due(self, source: str) -> bool:
        """Whether it is time for the next message of a source."""
        now = time.monotonic()
        # A little early counts: sources and this node have no common beat.
        if now - self._logged.get(source, -math.inf) < 0.9 / self.value("rate"):
            return False
        self._logged[source] = now
        return True

    def _on_image(self, message: Image | CompressedImage, view: str, rotate: int) -> None:
        if not self._due(f"image {view}"):
            return
        try:
            if isinstance(message, Image) or rotate:
                rgb = np.ascontiguousarray(np.rot90(to_rgb(message), -rotate // 90))
                message = rgb_to_jpeg(rgb, message.header, self.value("jpeg_quality"))
        except ImageError as error:
            self.get_logger().warning(f"{view}: {error}", throttle_duration_sec=5.0)
            return
        picture = self._rerun.EncodedImage(
            contents=bytes(message.data), media_type=f"image/{encoding_of(message)}"
        )
        self._log(["cameras", view], seconds(message.header.stamp), picture)

    def _on_joints(self, topic: str, stamp: float, positions: dict[str, float]) -> None:
        self._joint |= positions
        if not self._due(f"joints {topic}"):
            return
        for group in self.embodiment.actions:
            joints = getattr(group, "joints", ())
            if joints and all(joint in self._joint for joint in joints):
                values = [self._joint[joint] for joint in joints]
                self._series(group.name, "measured", stamp, values)

    def _on_pose(self, message: Any) -> None:
        self._pose_frame = message.header.frame_id or self._pose_frame
        if not self._due("pose"):
            return
        stamp, pose = seconds(message.header.stamp), pose_of(message)
        p, q = pose.position, pose.orientation
        turn = self._rerun.Quaternion(xyzw=[q.x, q.y, q.z, q.w])
        self._log(
            ["scene", "robot"], stamp, self._rerun.Transform3D(translation=[p.x, p.y, p.z], quaternion=turn)
        )
        # Odometry alone tells the velocity, too.
        twist = message.twist.twist if hasattr(message, "twist") else None
        for group in self.embodiment.actions if twist is not None else ():
            if not getattr(group, "joints", ()):
                omni = group.controller.type == "omni_drive"
                values = [twist.linear.x, *([twist.linear.y] if omni else []), twist.angular.z]
                self._series(group.name, "measured", stamp, values)

    def _on_command(self, message: Any, name: str, read: Callable) -> None:
        if not self._due(f"command {name}"):
            return
        try:
            values = read(message)
        except (IndexError, KeyError, ValueError):
            # Of somebody else: an empty trajectory is a stop, and one may move some joints only.
            self.get_logger().warning(
                f"a command of {name} without all of its joints is not shown", throttle_duration_sec=5.0
            )
            return
        self._series(name, "commanded", self.now, values)

    def _on_path(self, message: PathMessage, name: str) -> None:
        places = [pose.pose.position for pose in message.poses]
        points = [[place.x, place.y, place.z] for place in places]
        line = self._rerun.LineStrips3D([points], radii=PATH_RADIUS)
        self._log(["scene", "odometry", "path", name], seconds(message.header.stamp), line)

    def _series(self, group: str, part: str, stamp: float, values: Sequence[float]) -> None:
        self._log(["groups", group, part], stamp, self._rerun.Scalars(values))

    def _on_chunk(self, message: ActionChunk) -> None:
        stamp = self.now
        for name, value in (
            ("inference", message.inference_time),
            ("capture to chunk", message.observation_age),
        ):
            self._log(["latency", name], stamp, self._rerun.Scalars([value]))

    def _on_status(self, message: ExecutorStatus) -> None:
        if math.isfinite(message.capture_to_command):
            self._log(
                ["latency", "capture to command"], self.now, self._rerun.Scalars([message.capture_to_command])
            )

    def _on_markers(self, message: MarkerArray) -> None:
        for marker in message.markers:
            if marker.action == Marker.DELETEALL:
                self._log(["scene"], self.now, self._rerun.Clear(recursive=True))
                continue
            stamp = seconds(marker.header.stamp) or self.now
            if marker.ns == "text":
                lines = marker.text.splitlines()
                if marker.action == Marker.ADD and lines != self._said:
                    self._said = lines
                    self._log(["status"], stamp, self._rerun.TextDocument(marker.text))
                continue
            # Links of the robot move with its base.
            fixed = marker.header.frame_id == self._pose_frame or marker.ns.endswith("/base")
            path = ["scene", "odometry" if fixed else "robot", *marker.ns.split("/"), str(marker.id)]
            if marker.action == Marker.DELETE:
                self._log(path, stamp, self._rerun.Clear(recursive=False))
                continue
            if marker.ns == "robot" and not self._framed:
                self._frame(points_of(marker))
            self._log(path, stamp, shape(marker))


def listening() -> bool:
    """Whether something listens where a viewer does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


def command_reader(group: Any) -> tuple[type, Callable[[Any], Sequence[float]]] | None:
    """Type of the group's command messages, and how the values are read from one, in the group's order."""
    kind = group.controller.type
    names = list(getattr(group.controller, "names", None) or getattr(group, "joints", ()))

    def named(names_in_message: Sequence[str], positions: Sequence[float]) -> list[float]:
        given = dict(zip(names_in_message, positions, strict=True))
        return [given[name] for name in names]

    if kind == "joint_trajectory":
        return JointTrajectory, lambda m: named(m.joint_names, m.points[-1].positions)
    if kind == "joint_state":
        return JointState, lambda m: named(m.name, m.position)
    if kind == "forward_command":
        return Float64MultiArray, lambda m: m.data
    if kind == "diff_drive":
        return _twist(group, lambda twist: [twist.linear.x, twist.angular.z])
    if kind == "omni_drive":
        return _twist(group, lambda twist: [twist.linear.x, twist.linear.y, twist.angular.z])
    return None


def _twist(group: Any, read: Callable[[Twist], Sequence[float]]) -> tuple[type, Callable]:
    if group.controller.stamped:
        return TwistStamped, lambda message: read(message.twist)
    return Twist, read


def points_of(marker: Marker) -> np.ndarray:
    """Shape (n, 3)."""
    return np.array([[point.x, point.y, point.z] for point in marker.points]).reshape(-1, 3)


def shape(marker: Marker) -> Any:
    """A marker of the visualizer as Rerun draws it.

    Raises:
        ValueError: A type that the visualizer does not use.
    """
    import rerun

    points = points_of(marker)
    tones = np.array([[c.r, c.g, c.b, c.a] for c in marker.colors or [marker.color]])
    colours = np.round(255 * np.clip(tones, 0.0, 1.0)).astype(np.uint8)
    radius = marker.scale.x / 2
    if marker.type == Marker.SPHERE_LIST:
        return rerun.Points3D(points, colors=colours, radii=radius)
    if marker.type in (Marker.LINE_STRIP, Marker.LINE_LIST):
        # A line has one colour there: one for each piece.
        strip = marker.type == Marker.LINE_STRIP
        pieces = np.stack([points[:-1], points[1:]] if strip else [points[::2], points[1::2]], axis=1)
        if len(colours) > 1:
            colours = colours[1:] if strip else colours[::2]
        return rerun.LineStrips3D(pieces, colors=colours, radii=radius)
    if marker.type == Marker.ARROW:
        p, q = marker.pose.position, marker.pose.orientation
        # The x axis of the pose.
        ahead = [1 - 2 * (q.y**2 + q.z**2), 2 * (q.x * q.y + q.w * q.z), 2 * (q.x * q.z - q.w * q.y)]
        vector = marker.scale.x * np.array(ahead)
        return rerun.Arrows3D(
            origins=[[p.x, p.y, p.z]], vectors=[vector], colors=colours, radii=marker.scale.y / 2
        )
    raise ValueError(f"marker {marker.ns}: type {marker.type} is not drawn")


def main() -> int:
    """Run the node."""
    return run(RerunNode)


if __name__ == "__main__":
    sys.exit(main())
