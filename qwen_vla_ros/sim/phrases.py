# SPDX-License-Identifier: Apache-2.0
"""How instructions are worded: for each task one plain sentence, other ones, and some kept for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qwen_vla_ros.sim.errors import SimulationError

if TYPE_CHECKING:
    from qwen_vla_ros.sim.tasks import Goal

CANONICAL, SEEN, HELD_OUT = WORDINGS = ("plain", "seen", "held-out")

# task: (wordings of the demonstrations, the plain one first; wordings for evaluation alone)
PHRASES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "reach": (
        (
            "reach the {colour} {kind}",
            "reach for the {colour} {kind}",
            "move to the {colour} {kind}",
            "go to the {colour} {kind}",
            "move the gripper above the {colour} {kind}",
            "please reach the {kind} that is {colour}",
            "hover over the {colour} {kind}",
            "approach the {colour} {kind}",
            "go to the {kind} that is {colour}",
            "please move to the {colour} {kind}",
        ),
        (
            "go over to the {colour} {kind}",
            "move above the {kind} that is {colour}",
            "please approach the {colour} {kind}",
        ),
    ),
    "push": (
        (
            "push the {colour} {kind} to the {direction}",
            "push the {colour} {kind} {direction}",
            "move the {colour} {kind} to the {direction}",
            "shift the {colour} {kind} to the {direction}",
            "please push the {kind} that is {colour} to the {direction}",
            "slide the {colour} {kind} to the {direction}",
        ),
        ("slide the {colour} {kind} {direction}", "please shift the {colour} {kind} {direction}"),
    ),
    "pick_up": (
        (
            "pick up the {colour} {kind}",
            "pick the {colour} {kind} up",
            "grasp the {colour} {kind} and lift it",
            "lift the {colour} {kind}",
            "take the {colour} {kind}",
            "please pick up the {kind} that is {colour}",
            "grab the {colour} {kind} and raise it",
            "lift up the {colour} {kind} from the table",
        ),
        (
            "grab the {colour} {kind} and lift it",
            "raise the {colour} {kind} from the table",
            "please take the {kind} that is {colour}",
        ),
    ),
    "place": (
        (
            "place the {colour} {kind} on the {pad} pad",
            "put the {colour} {kind} on the {pad} pad",
            "place the {colour} {kind} onto the {pad} pad",
            "set the {colour} {kind} down on the {pad} pad",
            "pick up the {colour} {kind} and put it on the {pad} pad",
            "drop the {colour} {kind} on the {pad} pad",
            "place the {kind} that is {colour} on the {pad} pad",
        ),
        (
            "take the {colour} {kind} and place it on the {pad} pad",
            "put the {kind} that is {colour} onto the {pad} pad",
        ),
    ),
    "reach_with_arm": (
        (
            "reach the {colour} {kind} with the {arm} arm",
            "reach for the {colour} {kind} with the {arm} arm",
            "with the {arm} arm, reach the {colour} {kind}",
            "move the {arm} arm to the {colour} {kind}",
            "use the {arm} arm to reach the {colour} {kind}",
            "bring the {arm} gripper above the {colour} {kind}",
            "please reach the {kind} that is {colour} with the {arm} arm",
            "with the {arm} gripper, approach the {colour} {kind}",
        ),
        (
            "with the {arm} arm, go to the {colour} {kind}",
            "use the {arm} gripper to reach for the {colour} {kind}",
        ),
    ),
    "reach_with_both": (
        (
            "reach the {colour} {kind} with both arms",
            "reach for the {colour} {kind} with both arms",
            "with both arms, reach the {colour} {kind}",
            "move both arms to the {colour} {kind}",
            "use both arms to reach the {colour} {kind}",
            "please reach the {kind} that is {colour} with both arms",
            "with both grippers, approach the {colour} {kind}",
        ),
        ("with both arms, go to the {colour} {kind}", "bring both grippers to the {colour} {kind}"),
    ),
    "pick_up_with_arm": (
        (
            "pick up the {colour} {kind} with the {arm} arm",
            "pick the {colour} {kind} up with the {arm} arm",
            "with the {arm} arm, pick up the {colour} {kind}",
            "use the {arm} arm to lift the {colour} {kind}",
            "grasp the {colour} {kind} with the {arm} gripper and lift it",
            "lift the {colour} {kind} with the {arm} arm",
            "please pick up the {kind} that is {colour} with the {arm} arm",
        ),
        (
            "use the {arm} arm to pick up the {colour} {kind}",
            "with the {arm} gripper, lift the {colour} {kind}",
        ),
    ),
    "touch": (
        (
            "touch the {colour} {kind} with the {arm} hand",
            "with the {arm} hand, touch the {colour} {kind}",
            "put the {arm} hand on the {colour} {kind}",
            "use the {arm} hand to touch the {colour} {kind}",
            "move the {arm} hand to the {colour} {kind}",
            "please touch the {kind} that is {colour} with the {arm} hand",
            "use the {arm} hand to touch the {kind} that is {colour}",
            "please put the {arm} hand on the {colour} {kind}",
        ),
        (
            "bring the {arm} hand to the {colour} {kind}",
            "with the {arm} hand, please touch the {kind} that is {colour}",
        ),
    ),
    "point": (
        (
            "point at the {colour} {kind} with the {arm} hand",
            "with the {arm} hand, point at the {colour} {kind}",
            "point the {arm} hand at the {colour} {kind}",
            "use the {arm} hand to point at the {colour} {kind}",
            "show the {colour} {kind} with the {arm} hand",
            "please point at the {kind} that is {colour} with the {arm} hand",
            "use the {arm} hand to point at the {kind} that is {colour}",
            "please show the {colour} {kind} with the {arm} hand",
            "please point the {arm} hand to the {colour} {kind}",
            "show the {kind} that is {colour} with the {arm} hand",
            "with the {arm} hand, point to the {kind} that is {colour}",
        ),
        (
            "point to the {colour} {kind} with the {arm} hand",
            "with the {arm} hand, show the {kind} that is {colour}",
        ),
    ),
    "wave": (
        (
            "wave with the {arm} hand",
            "wave the {arm} hand",
            "with the {arm} hand, wave",
            "please wave with the {arm} hand",
            "wave your {arm} hand",
        ),
        ("use the {arm} hand to wave", "please wave your {arm} hand"),
    ),
    "drive": (
        (
            "drive to the {colour} {kind}",
            "go to the {colour} {kind}",
            "move to the {colour} {kind}",
            "drive up to the {colour} {kind}",
            "please drive to the {kind} that is {colour}",
            "navigate to the {colour} {kind}",
            "go to the {kind} that is {colour}",
            "please drive up to the {colour} {kind}",
        ),
        ("please go to the {colour} {kind}", "move up to the {kind} that is {colour}"),
    ),
    "stop_in_front": (
        (
            "stop in front of the {colour} {kind}",
            "drive forward and stop in front of the {colour} {kind}",
            "stop before the {colour} {kind}",
            "wait in front of the {colour} {kind}",
            "keep your distance and face the {colour} {kind}",
            "please stop in front of the {kind} that is {colour}",
            "wait before the {kind} that is {colour}",
            "go forward and wait in front of the {kind} that is {colour}",
        ),
        ("please wait before the {colour} {kind}", "drive and stop in front of the {kind} that is {colour}"),
    ),
    "go_between": (
        (
            "go between the {colour} {kind} and the {other} {kind}",
            "drive between the {colour} {kind} and the {other} {kind}",
            "pass between the {colour} {kind} and the {other} {kind}",
            "drive through between the {colour} and the {other} {kind}",
            "move between the {colour} and the {other} {kind}",
            "please drive between the {colour} and the {other} {kind}",
            "pass through between the {colour} {kind} and the {other} {kind}",
        ),
        (
            "please pass between the {colour} and the {other} {kind}",
            "go through between the {colour} {kind} and the {other} {kind}",
        ),
    ),
}


def phrases(goal: Goal, wording: str) -> list[str]:
    """Every instruction for a goal in a wording: `plain`, `seen` (in demonstrations) or `held-out` (never).

    Raises SimulationError for another wording.
    """
    if wording not in WORDINGS:
        raise SimulationError(f"wording: found {wording!r}, expected one of {', '.join(WORDINGS)}")
    seen, held_out = PHRASES[goal.task]
    templates = {CANONICAL: seen[:1], SEEN: seen, HELD_OUT: held_out}[wording]
    words = {
        "colour": goal.colour,
        "kind": goal.kind,
        "arm": goal.arm,
        "pad": goal.other,
        "other": goal.other,
        "direction": goal.direction,
    }
    return [template.format(**words) for template in templates]


def find_goal(goals: Iterable[Goal], instruction: str) -> Goal | None:
    """The goal that an instruction asks for, in whatever wording, with that instruction; None without one."""
    for goal in goals:
        if any(instruction in phrases(goal, wording) for wording in WORDINGS):
            return replace(goal, instruction=instruction)
    return None
