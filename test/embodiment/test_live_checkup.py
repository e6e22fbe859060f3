# SPDX-License-Identifier: Apache-2.0
"""Mismatches with a running system, judged from what was seen; test/nodes/test_doctor.py has real graphs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_vla_ros.embodiment import list_embodiments, live_checkup, live_codes, load_embodiment
from qwen_vla_ros.embodiment.checkup import STATIC, Subject, examine, jointed
from qwen_vla_ros.embodiment.graph_facts import (
    Controller,
    Endpoint,
    Graph,
    Images,
    JointStates,
    Odometry,
    Topic,
)
from qwen_vla_ros.embodiment.live_checkup import LIVE, examine_live
from qwen_vla_ros.embodiment.live_codes import CODES
from qwen_vla_ros.embodiment.live_topics import COMPRESSED, DESCRIPTION, OWN, POSES, command_type, sources
from qwen_vla_ros.embodiment.schema import PoseTopic, State

HERE = Path(__file__).parent
PANDA = load_embodiment("franka_panda")
BASE = load_embodiment("tiago_base")
TIMES = tuple(0.01 * k for k in range(200))
AGES = (0.02,) * len(TIMES)


def sound(body, namespace=""):
    """A graph in which all is as the embodiment says."""
    topics = {"/clock": Topic("/clock")}
    for source in sources(body):
        topics[source.topic] = Topic(f"{namespace}/{source.topic}", (Endpoint("/driver", source.type),))
    for group in body.actions:
        taker = Endpoint("/controller", command_type(group.controller))
        topics[group.controller.topic] = Topic(f"{namespace}/{group.controller.topic}", (), (taker,))
    for name in (*OWN, DESCRIPTION):
        topics[name] = Topic(f"{namespace}/{name}")
    stamps = tuple(time + 1.0 for time in TIMES)
    heard = (stamps, AGES, TIMES)
    positions = {
        joint: float(low + high) / 2
        for joints, _ in jointed(body)
        for joint, (low, high) in zip(joints.names, joints.position, strict=True)
    }
    states = body.state.joint_states
    frames = [group.frame for group in body.actions if hasattr(group, "frame")]
    # A pose names no frame of its own.
    child = frames[0] if frames and body.state.odometry else ""
    return Graph(
        namespace=namespace or "/",
        seconds=3.0,
        topics=topics,
        types={topic.name: tuple({e.type for e in topic.publishers}) for topic in topics.values()},
        nodes=("/driver", "/controller"),
        images={c.view: Images(*heard, c.encodings[:1], (tuple(c.size),)) for c in body.cameras},
        joints={topic: JointStates(*heard, positions) for topic in states},
        odometry=Odometry(*heard, "odom", child) if body.state.base else None,
        environment={"FASTDDS_DEFAULT_PROFILES_FILE": "x.xml", "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"},
    )


@pytest.mark.parametrize("name", list_embodiments())
def test_a_robot_that_is_as_its_yaml_says_has_no_finding(name):
    body = load_embodiment(name)
    assert list(examine_live(Subject(body, graph=sound(body)))) == []


def test_a_base_placed_by_poses_has_no_finding():
    for body in PLACED.values():
        assert codes(body, sound(body)) == {}


def codes(body, graph):
    return {finding.code: finding for finding in examine_live(Subject(body, graph=graph))}


ARM = PANDA.actions[0].controller.topic
GRIPPER = PANDA.actions[1].controller.topic
EGO = PANDA.cameras[0].topic


def with_topic(graph, name, **changes):
    return replace(graph, topics={**graph.topics, name: replace(graph.topics[name], **changes)})


def environment(**changes):
    graph = sound(PANDA)
    return replace(graph, environment={**graph.environment, **changes})


BIG = PANDA.model_copy(update={"cameras": (PANDA.cameras[0].model_copy(update={"size": (640, 480)}),)})
DEPTH = "camera/ego/depth"
SEEING = PANDA.model_copy(update={"cameras": (PANDA.cameras[0].model_copy(update={"depth": DEPTH}),)})
CLOCK = with_topic(sound(PANDA), "/clock", publishers=(Endpoint("/world", "rosgraph_msgs/msg/Clock"),))
ODOM = BASE.state.odometry
AMCL = "amcl_pose"
PLACED = {
    kind: BASE.model_copy(update={"state": State(pose=PoseTopic(topic=AMCL, type=kind))})
    for kind in POSES
    if kind != "odometry"
}
POSED, SEEN = PLACED["pose_stamped"], PLACED["pose_with_covariance_stamped"]
# What no test over DDS brings about: code, body, graph, words of found or expected, of the advice, warning
CASES = [
    ("RMW_UNTRIED", PANDA, environment(RMW_IMPLEMENTATION="rmw_x_cpp"), "rmw_x_cpp", "the same", True),
    (
        "FASTDDS_PROFILE",
        BIG,
        replace(sound(BIG), environment={"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}),
        "900 KiB",
        "config/fastdds_network.xml",
        True,
    ),
    ("DOMAIN_ID", PANDA, environment(ROS_DOMAIN_ID="190"), "190", "smaller", False),
    ("DOMAIN_ID", PANDA, environment(ROS_DOMAIN_ID="one"), "one", "smaller", False),
    ("GRAPH_EMPTY", PANDA, replace(sound(PANDA), nodes=()), "no other node", "ROS_DOMAIN_ID", False),
    ("CLOCK_STILL", PANDA, replace(CLOCK, clock=(4.0,) * 9), "at 4 s", "paused", False),
    ("CLOCK_STILL", PANDA, CLOCK, "silent", "paused", False),
    (
        "CLOCK_IGNORED",
        PANDA,
        replace(CLOCK, clock=TIMES, sim_time={"/executor": False, "/world": False}),
        "/executor",
        "use_sim_time:=true",
        False,
    ),
    (
        "ODOMETRY_UNPUBLISHED",
        BASE,
        with_topic(sound(BASE), ODOM, publishers=()),
        "no publisher",
        "start the driver",
        False,
    ),
    (
        "CAMERA_UNPUBLISHED",
        SEEING,
        with_topic(sound(SEEING), DEPTH, publishers=()),
        "msg/Image",
        "driver",
        False,
    ),
    (
        "CAMERA_TYPE",
        SEEING,
        with_topic(sound(SEEING), DEPTH, publishers=(Endpoint("/driver", COMPRESSED),)),
        "CompressedImage from /driver",
        "correct the topic",
        False,
    ),
    ("ODOMETRY_SILENT", BASE, replace(sound(BASE), odometry=Odometry()), "nothing from", "log", False),
    (
        "ODOMETRY_RATE",
        BASE,
        replace(sound(BASE), odometry=Odometry((0.0, 1.0), (0.0, 0.0), (0.0, 1.0), "odom", "base_footprint")),
        "1 Hz",
        "raise the rate",
        False,
    ),
    (
        "ODOMETRY_UNPUBLISHED",
        POSED,
        with_topic(sound(POSED), AMCL, publishers=()),
        "geometry_msgs/msg/PoseStamped",
        "start the driver",
        False,
    ),
    (
        "ODOMETRY_TYPE",
        POSED,
        with_topic(sound(POSED), AMCL, publishers=(Endpoint("/amcl", POSES[SEEN.state.base.type]),)),
        "geometry_msgs/msg/PoseWithCovarianceStamped from /amcl",
        "write pose: {topic: amcl_pose, type: pose_with_covariance_stamped} under state",
        False,
    ),
    (
        "ODOMETRY_TYPE",
        SEEN,
        with_topic(sound(SEEN), AMCL, publishers=(Endpoint("/driver", POSES["odometry"]),)),
        "nav_msgs/msg/Odometry from /driver",
        "write odometry: amcl_pose under state",
        False,
    ),
    (
        "ODOMETRY_TYPE",
        BASE,
        with_topic(sound(BASE), ODOM, publishers=(Endpoint("/tracker", POSES["pose_stamped"]),)),
        "nav_msgs/msg/Odometry",
        f"write pose: {{topic: {ODOM}, type: pose_stamped}} under state",
        False,
    ),
    (
        "ODOMETRY_RATE",
        POSED,
        replace(sound(POSED), odometry=Odometry((0.0, 1.0), (0.0, 0.0), (0.0, 1.0), "map")),
        "1 Hz",
        "raise the rate",
        False,
    ),
    (
        "STAMP_ZERO",
        SEEN,
        replace(sound(SEEN), odometry=replace(sound(SEEN).odometry, stamps=(0.0,) * len(TIMES))),
        "time of capture",
        "header.stamp",
        False,
    ),
    (
        "ODOMETRY_NOT_FINITE",
        POSED,
        replace(sound(POSED), odometry=replace(sound(POSED).odometry, broken="x nan")),
        "x nan",
        "publishes it",
        False,
    ),
    (
        "ODOMETRY_FRAME",
        POSED,
        replace(sound(POSED), odometry=replace(sound(POSED).odometry, frame="")),
        "no frame",
        "header.frame_id",
        True,
    ),
    (
        "CONTROLLER_INACTIVE",
        PANDA,
        replace(sound(PANDA), controller_states={"panda_arm_controller": "inactive"}),
        "panda_arm_controller is inactive",
        "--activate panda_arm_controller",
        False,
    ),
    (
        "JOINT_OUTSIDE",
        PANDA,
        replace(
            sound(PANDA),
            joints={
                "joint_states": replace(
                    sound(PANDA).joints["joint_states"],
                    positions={**sound(PANDA).joints["joint_states"].positions, "panda_joint1": 6.3},
                )
            },
        ),
        "panda_joint1 at 6.3",
        "a whole turn",
        False,
    ),
    (
        "CONTROLLER_JOINTS",
        PANDA,
        replace(sound(PANDA), controllers={ARM: Controller("/arm", {"joints": ["panda_joint1"]})}),
        "panda_joint1, as in /arm",
        "name the joints",
        False,
    ),
    (
        "QOS_DURABILITY",
        PANDA,
        with_topic(
            sound(PANDA), DESCRIPTION, publishers=(Endpoint("/robot_state_publisher", "std_msgs/msg/String"),)
        ),
        "the visualizer",
        "gets nothing",
        True,
    ),
    (
        "CAMERA_UNPUBLISHED",
        PANDA,
        replace(
            with_topic(sound(PANDA), EGO, publishers=()),
            types={"/left/camera/ego/image_raw": ("sensor_msgs/msg/Image",)},
        ),
        "no publisher",
        "--namespace /left",
        False,
    ),
]


@pytest.mark.parametrize(
    ("code", "body", "graph", "words", "advice", "warning"),
    CASES,
    ids=[f"{k}-{case[0]}" for k, case in enumerate(CASES)],
)
def test_fault(code, body, graph, words, advice, warning):
    found = codes(body, graph)
    assert list(found) == [code], [str(finding) for finding in found.values()]
    finding = found[code]
    assert words in f"{finding.found} {finding.expected}"
    assert advice in finding.advice
    assert finding.warning == warning


def test_every_code_is_tested():
    live = (HERE.parent / "nodes" / "test_doctor.py").read_text()
    tested = {case[0] for case in CASES} | set(re.findall(r'"([A-Z]+_[A-Z_]+)"', live)) | {"ROS_MISSING"}
    assert "[ROS_MISSING]" in live
    assert set(CODES) - tested == {"DESCRIPTION_BROKEN"}
    assert "no URDF" in CODES["DESCRIPTION_BROKEN"]
    source = "".join(path.read_text() for path in Path(live_checkup.__file__).parent.glob("live_*.py"))
    written = set(re.findall(r'"([A-Z]+_[A-Z_]+)",?$', source, re.MULTILINE))
    prefixed = {
        f"{p}_{s}"
        for p in ("CAMERA", "JOINTS", "ODOMETRY")
        for s in ("UNPUBLISHED", "TYPE", "SILENT", "RATE")
    }
    assert written | prefixed <= set(CODES) | {"FASTDDS_DEFAULT_PROFILES_FILE"}


def test_the_table_of_the_page_is_that_of_the_code():
    page = (HERE.parents[1] / "docs" / "real_robot.md").read_text()
    assert live_codes.table() in page


def test_a_joint_that_turns_without_end_may_count_its_turns():
    body = load_embodiment("kinova_gen3")
    (turning, *_), graph = body.actions[0].continuous, sound(body)
    bounded = next(joint for joint in body.actions[0].joints if joint not in body.actions[0].continuous)
    (topic,) = graph.joints
    for joint, expected in ((turning, []), (bounded, ["JOINT_UNIT"])):
        heard = graph.joints[topic]
        far = replace(heard, positions={**heard.positions, joint: 40.0})
        assert list(codes(body, replace(graph, joints={topic: far}))) == expected


def test_the_frame_of_a_base_may_have_a_prefix():
    for frame, child, expected in (
        ("base_footprint", "left/base_footprint", []),
        ("left/base_footprint", "left/base_footprint", []),
        ("left/base_footprint", "right/base_footprint", ["ODOMETRY_FRAME"]),
    ):
        body = BASE.model_copy(update={"actions": (BASE.actions[0].model_copy(update={"frame": frame}),)})
        graph = replace(sound(BASE), odometry=replace(sound(BASE).odometry, child_frame=child))
        assert list(codes(body, graph)) == expected, (frame, child)


def test_an_unused_controller_may_be_partial():
    given = {"joints": [*PANDA.actions[0].joints, "panda_joint8"]}
    graph = replace(sound(PANDA), controllers={ARM: Controller("/arm", given)})
    assert list(codes(PANDA, graph)) == ["CONTROLLER_JOINTS"]
    graph = replace(
        graph, controllers={ARM: Controller("/arm", {**given, "allow_partial_joints_goal": True})}
    )
    assert codes(PANDA, graph) == {}
    # A gripper controller names one joint.
    graph = replace(graph, controllers={GRIPPER: Controller("/gripper", {"joint": "panda_finger_joint1"})})
    assert codes(PANDA, graph) == {}


def test_skew_is_judged_by_what_the_policy_would_see():
    body = load_embodiment("franka_panda_wrist")
    graph = sound(body)
    first, second = (camera.view for camera in body.cameras[:2])
    for lag, expected in ((0.05, []), (0.09, []), (0.4, ["CAMERA_SKEW"])):
        late = tuple(stamp - lag for stamp in graph.images[second].stamps)
        images = {**graph.images, second: replace(graph.images[second], stamps=late)}
        assert list(codes(body, replace(graph, images=images))) == expected, lag
    assert first != second


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.lists(st.floats(-1e3, 1e3), max_size=20))
def test_no_stream_breaks_a_check(stamps, ages):
    count = len(stamps)
    padded = tuple((ages + [float("nan")] * count)[:count])
    heard = tuple(stamps), padded, tuple(sorted(stamps))
    graph = replace(
        sound(PANDA),
        images={"ego": Images(*heard, ("rgb8",), ((128, 128),))},
        joints={"joint_states": JointStates(*heard, sound(PANDA).joints["joint_states"].positions)},
    )
    for finding in examine_live(Subject(PANDA, graph=graph)):
        assert finding.code in CODES


def test_without_a_graph_nothing_is_said():
    assert examine(Subject(PANDA), (*STATIC, *LIVE)) == []
