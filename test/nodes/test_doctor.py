# SPDX-License-Identifier: Apache-2.0
"""`qwen-vla doctor --live` and the checks at configure, on graphs with faults and on a sound one."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter

import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS 2")

import rclpy
from geometry_msgs.msg import PoseWithCovarianceStamped, Twist
from nav_msgs.msg import Odometry
from qwen_vla_ros.msg import ExecutorStatus, PolicyStatus
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory
from typer.testing import CliRunner

from qwen_vla_ros.cli import app
from qwen_vla_ros.embodiment import load_embodiment, parse_embodiment
from qwen_vla_ros.embodiment.checkup import Subject
from qwen_vla_ros.embodiment.live_checkup import examine_live
from qwen_vla_ros.nodes import graph_checkup, qos
from qwen_vla_ros.nodes.configuration_checkup import check_executor, check_policy
from qwen_vla_ros.nodes.graph_checkup import look
from qwen_vla_ros.nodes.lifecycle import ConfigurationError
from qwen_vla_ros.resources import checkpoints_directory

PERIOD = 0.05
LIMITS = {"position": [-2.0, 2.0], "velocity": 1.0, "acceleration": 5.0, "jerk": 50.0}


def camera(view, **more):
    return {"view": view, "topic": f"camera/{view}", "size": [8, 6], **more}


def arm(name, joints, kind, **controller):
    return {
        "name": name,
        "kind": "joint_position",
        "joints": joints,
        "unit": "rad",
        "reference": "absolute",
        "limits": LIMITS,
        "controller": {"type": kind, "topic": f"{name}/commands", **controller},
    }


def base(frame="base_link"):
    reach = {"velocity": 1.0, "acceleration": 1.0, "jerk": 5.0}
    return {
        "name": "base",
        "kind": "waypoint",
        "frame": frame,
        "limits": {"linear": reach, "angular": reach},
        "controller": {"type": "diff_drive", "topic": "cmd_vel", "stamped": True},
    }


def robot(cameras, states, actions, **more):
    joints = [joint for group in actions for joint in group.get("joints", ())]
    return {
        "schema": 1,
        "name": "robot",
        "description": "A robot with faults around it",
        "prompt": {"robot_tag": "Robot", "arms": "single", "mobile_base": actions[-1]["name"] == "base"},
        "control_rate": 10.0,
        "command_rate": 100.0,
        "horizon": 16,
        "execute_steps": 8,
        "cameras": cameras,
        "state": {"joint_states": states, "odometry": "odom"},
        "actions": actions,
        "home": dict.fromkeys(joints, 0.0),
        **more,
    }


ODD = ("unpublished", "packed", "packed_too", "silent", "twice", "depth", "small", "torn", "slow")
STAMPS = ("unstamped", "stuck", "ahead", "late", "mixed")
FIRST = robot(
    [camera("ego"), *(camera(view, required=False) for view in (*ODD, *STAMPS, "watched"))],
    ["joint_states"],
    [
        arm("unheard", ["a1"], "forward_command"),
        arm("mistaken", ["a2"], "joint_trajectory"),
        arm("contested", ["a3"], "forward_command"),
        arm("ordered", ["b1", "b2"], "forward_command"),
        arm("named", ["c1", "c2"], "joint_trajectory"),
        arm("partial", ["d1"], "joint_trajectory"),
        arm("speed", ["e1"], "forward_command"),
        arm("lagging", ["f1"], "joint_trajectory"),
        arm("latched", ["g1"], "forward_command"),
        arm("hurried", ["h1"], "forward_command"),
        base(),
    ],
)
JOINTS = ["a1", "a2", "a3", "b1", "b2", "c1", "c2", "d1", "e1", "f1", "g1"]
# code, and the field of the YAML or the topic
FIRST_FAULTS = [
    ("CLOCK_MISSING", "/clock"),
    ("CAMERA_UNPUBLISHED", "cameras[1].topic"),
    ("CAMERA_TYPE", "cameras[2].topic"),
    ("CAMERA_TYPE", "cameras[3].topic"),
    ("CAMERA_SILENT", "cameras[4].topic"),
    ("CAMERA_TWICE", "cameras[5].topic"),
    ("CAMERA_ENCODING", "cameras[6].encodings"),
    ("CAMERA_SIZE", "cameras[7].size"),
    ("CAMERA_BROKEN", "cameras[8].topic"),
    ("CAMERA_RATE", "cameras[9].topic"),
    ("STAMP_ZERO", "cameras[10].topic"),
    ("STAMP_STUCK", "cameras[11].topic"),
    ("STAMP_FUTURE", "cameras[12].topic"),
    ("STAMP_OLD", "cameras[13].topic"),
    ("STAMP_BACKWARDS", "cameras[14].topic"),
    ("QOS_RELIABILITY", "cameras[15].topic"),
    ("JOINT_MISSING", "actions[9].joints[0]"),
    ("JOINT_NOT_FINITE", "state.joint_states[0]"),
    ("JOINT_UNIT", "actions[1].limits.position"),
    ("JOINT_OUTSIDE", "actions[2].limits.position"),
    ("ODOMETRY_NOT_FINITE", "state.odometry"),
    ("ODOMETRY_FRAME", "actions[10].frame"),
    ("COMMAND_UNHEARD", "actions[0].controller.topic"),
    ("COMMAND_TYPE", "actions[1].controller.type"),
    ("COMMAND_TYPE", "actions[10].controller.type"),
    ("COMMAND_CONTESTED", "actions[2].controller.topic"),
    ("CONTROLLER_ORDER", "actions[3].joints"),
    ("CONTROLLER_ORDER", "actions[4].joints"),
    ("CONTROLLER_JOINTS", "actions[5].joints"),
    ("CONTROLLER_INTERFACE", "actions[6].controller.topic"),
    ("CONTROLLER_INTERPOLATION", "actions[7].controller.topic"),
    ("CONTROLLER_SLOW", "command_rate"),
    ("QOS_DURABILITY", "actions[8].controller.topic"),
    ("QOS_DEADLINE", "actions[9].controller.topic"),
    ("QOS_LIVELINESS", "/first/policy_status"),
    ("QOS_LIVELINESS", "/first/policy_status"),
    ("EXECUTOR_TWICE", "/first/executor_status"),
    ("POLICY_TWICE", "/first/policy_status"),
    ("NODE_EMBODIMENT", "name"),
    ("DISCOVERY_RANGE", ""),
]
SECOND = robot(
    [camera("ego"), camera("cam_wrist")],
    ["absent", "foreign", "quiet", "seldom", "uneven"],
    [arm("arm", ["a1"], "forward_command"), base()],
)
SECOND["state"] = {
    "joint_states": SECOND["state"]["joint_states"],
    "pose": {"topic": "tracked", "type": "pose_stamped"},
}
SECOND_FAULTS = [
    ("CLOCK_TWICE", "/second/clock"),
    ("CLOCK_IGNORED", "/second/clock"),
    ("CAMERA_SKEW", "max_camera_skew"),
    ("JOINTS_UNPUBLISHED", "state.joint_states[0]"),
    ("JOINTS_TYPE", "state.joint_states[1]"),
    ("JOINTS_SILENT", "state.joint_states[2]"),
    ("JOINTS_RATE", "state.joint_states[3]"),
    ("JOINTS_LENGTH", "state.joint_states[4]"),
    ("ODOMETRY_TYPE", "state.pose.topic"),
    ("COMMAND_UNHEARD", "actions[0].controller.topic"),
    ("COMMAND_UNHEARD", "actions[1].controller.topic"),
    ("DISCOVERY_RANGE", ""),
]


UNTOPICAL = ("CONTROLLER_SLOW", "DISCOVERY_RANGE")


class Faults:
    """Nodes of one context that publish what is wrong, every `PERIOD`, in a thread of their own."""

    def __init__(self, environment):
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=int(environment["ROS_DOMAIN_ID"]))
        self._executor = SingleThreadedExecutor(context=self._context)
        self._nodes: list[Node] = []
        self._beats: list = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults")

    def start(self) -> None:
        self._thread.start()

    def node(self, name, namespace, **parameters) -> Node:
        made = rclpy.create_node(
            name,
            namespace=namespace,
            context=self._context,
            enable_rosout=False,
            parameter_overrides=[Parameter(key, value=value) for key, value in parameters.items()],
            automatically_declare_parameters_from_overrides=True,
        )
        self._nodes.append(made)
        self._executor.add_node(made)
        return made

    def publish(self, node, kind, topic, make=None, every=1, profile=qos.RELIABLE):
        """Publish make(now, count), every so many periods."""
        publisher = node.create_publisher(kind, topic, profile)
        if make is not None:
            self._beats.append((publisher, make, every))

    def listen(self, node, kind, topic, profile=qos.RELIABLE):
        node.create_subscription(kind, topic, lambda message: None, profile)

    def _run(self) -> None:
        count, due = 0, time.monotonic()
        while not self._ended.is_set():
            self._executor.spin_once(timeout_sec=max(0.0, min(due - time.monotonic(), PERIOD)))
            if time.monotonic() >= due:
                for publisher, make, every in self._beats:
                    if count % every == 0:
                        publisher.publish(make(time.time(), count))
                count, due = count + 1, due + PERIOD

    def end(self) -> None:
        self._ended.set()
        self._thread.join(5.0)
        self._executor.shutdown()
        for node in self._nodes:
            node.destroy_node()
        rclpy.shutdown(context=self._context)


def stamped(message, time_s):
    nanoseconds = round(time_s * 1e9)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(nanoseconds, 10**9)
    return message


def picture(encoding="rgb8", width=8, height=6, rows=6):
    return Image(encoding=encoding, width=width, height=height, step=width * 3, data=bytes(width * 3 * rows))


def first_robot(faults):
    drivers = faults.node("drivers", "/first")
    other = faults.node("other", "/first", use_sim_time=True)

    def images(view, make=picture, when=lambda now, count: now, **more):
        more.setdefault("profile", qos.IMAGE)
        faults.publish(
            drivers, Image, f"camera/{view}", lambda now, count: stamped(make(), when(now, count)), **more
        )

    images("ego")
    faults.publish(drivers, CompressedImage, "camera/packed")
    faults.publish(drivers, CompressedImage, "camera/packed_too/compressed")
    faults.publish(drivers, Image, "camera/silent")
    images("twice")
    faults.publish(other, Image, "camera/twice")
    images("depth", lambda: picture("16UC1"))
    images("small", lambda: picture(width=4, height=3))
    images("torn", lambda: picture(rows=2))
    images("slow", every=12)
    images("unstamped", when=lambda now, count: 0.0)
    images("stuck", when=lambda now, count: 1.0)
    images("ahead", when=lambda now, count: now + 5.0)
    images("late", when=lambda now, count: now - 5.0)
    images("mixed", when=lambda now, count: now - 0.1 * (count % 2))
    images("watched")
    faults.listen(faults.node("recorder", "/first"), Image, "camera/watched")

    positions = {**dict.fromkeys(JOINTS, 0.1), "a2": 90.0, "a3": 2.5, "e1": float("nan")}
    states = JointState(name=list(positions), position=list(positions.values()))
    faults.publish(drivers, JointState, "joint_states", lambda now, count: stamped(states, now))
    odometry = Odometry(child_frame_id="base_footprint")
    odometry.header.frame_id = "odom"
    odometry.pose.pose.position.x = float("nan")
    faults.publish(drivers, Odometry, "odom", lambda now, count: stamped(odometry, now))

    for name, kind, parameters in (
        ("mistaken", Float64MultiArray, {}),
        ("contested", Float64MultiArray, {"joints": ["a3"]}),
        ("ordered", Float64MultiArray, {"joints": ["b2", "b1"], "interface_name": "position"}),
        ("named", JointTrajectory, {"joints": ["c2", "c1"]}),
        ("partial", JointTrajectory, {"joints": ["d1", "d2"]}),
        ("speed", Float64MultiArray, {"joints": ["e1"], "interface_name": "velocity"}),
        ("lagging", JointTrajectory, {"joints": ["f1"], "interpolate_from_desired_state": False}),
    ):
        faults.listen(faults.node(name, "/first", **parameters), kind, f"{name}/commands")
    faults.publish(other, Float64MultiArray, "contested/commands")
    faults.listen(other, Float64MultiArray, "latched/commands", qos.LATCHED)
    hurried = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, deadline=Duration(seconds=0.01))
    faults.listen(other, Float64MultiArray, "hurried/commands", hurried)
    faults.listen(other, Twist, "cmd_vel")
    faults.node("controller_manager", "/first", update_rate=50)

    for node in (drivers, other):
        status = ExecutorStatus(embodiment="somebody")
        faults.publish(node, ExecutorStatus, "executor_status", lambda *_, m=status: m, profile=qos.LATCHED)
        faults.publish(node, PolicyStatus, "policy_status")
    watched = QoSProfile(
        depth=1,
        liveliness=LivelinessPolicy.AUTOMATIC,
        liveliness_lease_duration=Duration(seconds=0.1),
        durability=DurabilityPolicy.VOLATILE,
    )
    faults.listen(other, PolicyStatus, "policy_status", watched)


def second_robot(faults):
    """One whose time is simulated."""
    began = time.time()

    def at(now):
        return now - began + 10.0

    def clock(now, count):
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(round(at(now) * 1e9), 10**9)
        return message

    worlds = [faults.node(name, "/second") for name in ("world", "world_too")]
    faults.publish(worlds[0], Clock, "clock", clock, profile=qos.SENSOR)
    faults.publish(worlds[1], Clock, "clock", profile=qos.SENSOR)
    world, drivers = worlds[0], faults.node("drivers", "/second")
    for view, lag in (("ego", 0.0), ("cam_wrist", 0.3)):
        faults.publish(
            world, Image, f"camera/{view}", lambda now, count, lag=lag: stamped(picture(), at(now) - lag)
        )
    faults.publish(drivers, String, "foreign")
    faults.publish(world, JointState, "quiet")
    sound = JointState(name=["a1"], position=[0.0])
    faults.publish(world, JointState, "seldom", lambda now, count: stamped(sound, at(now)), every=12)
    uneven = JointState(name=["a2", "a3"], position=[0.0])
    faults.publish(world, JointState, "uneven", lambda now, count: stamped(uneven, at(now)))
    faults.publish(world, PoseWithCovarianceStamped, "tracked")


@pytest.fixture(scope="module")
def faults(ros_environment):
    made = Faults(ros_environment)
    first_robot(made)
    second_robot(made)
    made.start()
    yield made
    made.end()


@pytest.mark.parametrize(
    ("document", "namespace", "expected"),
    [(FIRST, "/first", FIRST_FAULTS), (SECOND, "/second", SECOND_FAULTS)],
    ids=["first", "second"],
)
def test_every_fault_is_named_and_nothing_else(faults, document, namespace, expected):
    body = parse_embodiment(document)
    graph, _ = look(body, namespace, duration=1.5)
    findings = list(examine_live(Subject(body, graph=graph)))
    shown = "\n".join(map(str, findings))
    found = Counter((f.code, f.field or f.topic) for f in findings)
    assert found == Counter(expected), f"{found - Counter(expected)}, {Counter(expected) - found}\n{shown}"
    for finding in findings:
        assert finding.found, finding
        assert finding.expected, finding
        assert len(finding.advice) > 10, finding
        assert finding.topic.startswith((namespace, "/clock")) or finding.code in UNTOPICAL


def test_a_graph_without_nodes(ros_environment, monkeypatch):
    # The highest domain is not among those that tests take.
    monkeypatch.setenv("ROS_DOMAIN_ID", "102")
    monkeypatch.setattr(graph_checkup, "DISCOVERY", 0.3)
    body = parse_embodiment(SECOND)
    graph, _ = look(body, duration=0.1)
    assert [f.code for f in examine_live(Subject(body, graph=graph))] == ["DOMAIN_ID", "GRAPH_EMPTY"]


def test_a_sound_robot_has_no_finding(stack):
    # Slowly, so that ages, which are in its time, stay small on a busy machine.
    stack.sim(real_time_factor=0.2, camera_rate=30.0)
    seen: list = []
    stack.node.create_subscription(Image, stack.name("camera/ego/image_raw"), seen.append, qos.IMAGE)
    stack.wait_for(lambda: len(seen) > 2, 60.0, "images")
    arguments = ["doctor", "--embodiment", "franka_panda", "--live", "--namespace", stack.namespace]
    result = CliRunner().invoke(app, [*arguments, "--seconds", "5", "--json"])
    found = json.loads(result.stdout)
    assert found["findings"] == [], result.stdout
    assert (found["errors"], result.exit_code) == (0, 0)
    assert found["urdf"] == stack.name("robot_description")
    assert stack.name("sim") in found["live"]["nodes"]


@pytest.fixture
def unready(ros_node):
    """What a node is to the checks at configure."""
    ros_node.ending = threading.Event()
    return ros_node


def test_the_executor_refuses_what_its_controllers_say(faults, spawn, tmp_path):
    document = {**FIRST, "actions": [FIRST["actions"][3], FIRST["actions"][6]], "home": {}}
    document["state"] = {"joint_states": ["joint_states"]}
    document["prompt"] = {"robot_tag": "Robot", "arms": "single"}
    file = tmp_path / "robot.yaml"
    file.write_text(yaml.safe_dump(document))
    for _ in range(3):
        process = spawn(
            "executor", parameters={"embodiment": str(file)}, ros_arguments=("-r", "__ns:=/first")
        )
        said = process.wait_for_output(r"\[CONTROLLER_(INTERFACE|ORDER)\]|: configured for", 40.0).group()
        if "CONTROLLER" in said:
            break
        process.end()  # a controller answered too late to be compared
    assert "CONTROLLER" in said
    assert "configure failed: embodiment robot does not fit" in process.output
    assert "Traceback" not in process.output
    assert process.end() == 0


def test_with_dry_run_controllers_do_not_count(faults, unready, wait_for):
    wait_for(lambda: unready.count_subscribers("/first/ordered/commands"), 20.0, "the controller")
    document = {**FIRST, "home": {}}
    document["state"] = {"joint_states": ["/first/joint_states"]}
    document["prompt"] = {"robot_tag": "Robot", "arms": "single"}
    topic = {"type": "forward_command", "topic": "/first/ordered/commands"}
    document["actions"] = [{**FIRST["actions"][3], "controller": topic}]
    body = parse_embodiment(document)
    check_executor(unready, body, dry_run=True)

    def refuses():
        # A busy node may answer too late to be compared.
        try:
            check_executor(unready, body)
        except ConfigurationError as error:
            return "actions[0].joints: /first/ordered/commands: found b1 at 0" in str(error)

    wait_for(refuses, 40.0, "the order of the controller's joints to be refused")


def test_the_policy_refuses_what_does_not_fit_its_checkpoint_or_the_urdf(unready):
    checkpoint = str(checkpoints_directory() / "qwen_vla_tiny")
    body = load_embodiment("franka_panda")
    check_policy(unready, body, checkpoint)
    with pytest.raises(ConfigurationError, match="TRAINED_RATE"):
        check_policy(unready, body.model_copy(update={"control_rate": 20.0}), checkpoint)
    # Names other than a folder are left to the policy.
    check_policy(unready, body, "double")
    urdf = (
        '<robot name="r"><link name="a"/><link name="b"/><joint name="panda_joint1" type="revolute">'
        '<parent link="a"/><child link="b"/><limit lower="-1" upper="1" velocity="9" effort="1"/>'
        "</joint></robot>"
    )
    unready.declare_parameter("robot_description", urdf)
    with pytest.raises(ConfigurationError, match=r"within \[-1, 1\], the URDF.s.*URDF_POSITION"):
        check_policy(unready, body, "double")
    unready.set_parameters([Parameter("robot_description", value="/nowhere.urdf")])
    with pytest.raises(
        ConfigurationError, match=r"parameter robot_description: /nowhere\.urdf: cannot be read"
    ):
        check_policy(unready, body, "double")
    unready.set_parameters([Parameter("robot_description", value="")])
    check_policy(unready, body, "double")
    publisher = unready.create_publisher(String, "robot_description", qos.LATCHED)
    publisher.publish(String(data=urdf))
    with pytest.raises(ConfigurationError, match="URDF_POSITION"):
        check_policy(unready, body, "double")


def test_without_ros_the_live_half_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwen_vla_ros.nodes.graph_checkup", None)
    result = CliRunner().invoke(app, ["doctor", "--embodiment", "so101", "--live"])
    assert result.exit_code == 1
    assert "[ROS_MISSING]" in result.stdout
    assert "so101: 1 errors" in result.stdout
