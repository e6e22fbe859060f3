# SPDX-License-Identifier: Apache-2.0
"""Codes of what does not fit with a running system.

`python -m qwen_vla_ros.embodiment.live_codes` prints them as the table of docs/real_robot.md.
"""

from __future__ import annotations

from qwen_vla_ros.embodiment.checkup import Finding, Path

CODES = {
    "GRAPH_EMPTY": "no other node can be seen",
    "ROS_MISSING": "`--live` without ROS 2",
    "RMW_UNTRIED": "(warning) another middleware than Fast DDS",
    "FASTDDS_PROFILE": "(warning) large images on Fast DDS without a profile: most of them are lost",
    "DOMAIN_ID": "ROS_DOMAIN_ID above 101, or no number",
    "DISCOVERY_RANGE": "(warning) something is missing, and discovery ends at this computer",
    "DESCRIPTION_BROKEN": "(warning) what is on `robot_description` is no URDF",
    "CLOCK_MISSING": "a node has `use_sim_time`, and nobody publishes the clock",
    "CLOCK_STILL": "the clock is published and stands still",
    "CLOCK_TWICE": "two nodes publish the clock",
    "CLOCK_IGNORED": "the clock is published, and a node runs without `use_sim_time` (warning if not ours)",
    "CAMERA_UNPUBLISHED": "nobody publishes images on the topic (warning if not `required`)",
    "CAMERA_TYPE": "raw images where compressed ones are expected, or the reverse, or something else",
    "CAMERA_SILENT": "a publisher, and no image (warning if not `required`)",
    "CAMERA_TWICE": "(warning) two nodes publish on the topic",
    "CAMERA_ENCODING": "an encoding that `encodings` does not list",
    "CAMERA_SIZE": "images of another size than `size`",
    "CAMERA_BROKEN": "images that cannot be decoded",
    "CAMERA_RATE": "fewer images than one per `max_age`, or than one per chunk",
    "CAMERA_SKEW": "required cameras never within `max_camera_skew` (warning: less than half of the time)",
    "JOINTS_UNPUBLISHED": "nobody publishes joint states on the topic",
    "JOINTS_TYPE": "something else on the topic",
    "JOINTS_SILENT": "a publisher, and no joint state",
    "JOINTS_RATE": "fewer joint states than one per `max_age` (warning: than `control_rate`)",
    "JOINTS_LENGTH": "not as many positions as names",
    "JOINT_MISSING": "a joint of the YAML that no joint state names",
    "JOINT_NOT_FINITE": "a position that is NaN or infinite",
    "JOINT_OUTSIDE": "a joint beyond the limits of the YAML",
    "JOINT_UNIT": "a position that looks like degrees or millimetres",
    "ODOMETRY_UNPUBLISHED": "nobody publishes odometry, or the pose, on the topic",
    "ODOMETRY_TYPE": "something else on the topic",
    "ODOMETRY_SILENT": "a publisher, and no odometry or pose",
    "ODOMETRY_RATE": "fewer poses of the base than one per `max_age` (warning: than `control_rate`)",
    "ODOMETRY_NOT_FINITE": "a pose that is NaN or infinite",
    "ODOMETRY_FRAME": "(warning) `child_frame_id` is not the group's `frame`; a `pose` without `frame_id`",
    "STAMP_ZERO": "messages without a stamp",
    "STAMP_STUCK": "the same stamp again and again",
    "STAMP_BACKWARDS": "(warning) stamps of one publisher that go back",
    "STAMP_FUTURE": "stamps ahead of the clock",
    "STAMP_OLD": "messages that come older than `max_age`",
    "COMMAND_UNHEARD": "nobody subscribes to a command topic, or serves the action",
    "COMMAND_TYPE": "a subscriber to another type of message",
    "COMMAND_CONTESTED": "another node publishes on a command topic",
    "CONTROLLER_JOINTS": "the controller has other joints than the group",
    "CONTROLLER_ORDER": "the same joints in another order (warning where messages name the joints)",
    "CONTROLLER_INTERFACE": "a forward controller that passes positions on as something else",
    "CONTROLLER_INTERPOLATION": "(warning) a trajectory controller without `interpolate_from_desired_state`",
    "CONTROLLER_INACTIVE": "controller_manager says that it does not run",
    "CONTROLLER_SLOW": "(warning) controller_manager updates less often than `command_rate`",
    "QOS_RELIABILITY": "a publisher that is best effort, a subscriber that asks for reliable",
    "QOS_DURABILITY": "a publisher that is volatile, a subscriber that asks for transient local",
    "QOS_DEADLINE": "a subscriber that asks for a shorter deadline",
    "QOS_LIVELINESS": "a subscriber that asks for signs of life more often",
    "EXECUTOR_TWICE": "two executors in the namespace",
    "POLICY_TWICE": "two policies in the namespace",
    "NODE_EMBODIMENT": "policy or executor run for another embodiment",
}
"""Every code of this module and what it means. Errors, unless it says (warning)."""


def live_finding(
    code: str,
    path: Path,
    topic: str,
    found: str,
    expected: str,
    advice: str,
    warning: bool = False,
) -> Finding:
    always = CODES[code].startswith("(warning)")
    return Finding(code, path, found, expected, advice, warning or always, topic)


def table() -> str:
    """The codes in Markdown."""
    rows = ["| code | is reported when | |", "|---|---|---|"]
    for code, meaning in CODES.items():
        warning = meaning.startswith("(warning)")
        text = meaning.removeprefix("(warning) ")
        rows.append(f"| `{code}` | {text} | {'warning' if warning else 'error'} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
