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

_THINGS = ("the {colour} {kind}", "the {kind} that is {colour}")
_PILLARS = ("the {colour} {kind} and the {other} {kind}", "the {colour} and the {other} {kind}")
# Sentences that say which arm is meant, and what it does.
_BY_ARM = (
    "{do} with the {arm} {limb}",
    "with the {arm} {limb}, {do}",
    "use the {arm} {limb} to {do}",
    "please {do} with the {arm} {limb}",
    "with the {arm} {limb}, please {do}",
    "please use the {arm} {limb} to {do}",
)
# A hand is somebody's: twice as many frames. So that what is kept for evaluation does not tell one task from
# another by its frame, each of them has been heard with several verbs of each task.
_BY_HAND = (*_BY_ARM, *(each.replace("the {arm} {limb}", "your {arm} {limb}") for each in _BY_ARM))
_BY_BOTH = tuple(each.replace("the {arm} {limb}", "both {limb}s") for each in _BY_ARM)
_ALONE = ("{do}", "please {do}")


def _sentences(
    frames: Iterable[str],
    doings: Iterable[str],
    things: Iterable[str] = _THINGS,
    limbs: Iterable[str] = ("",),
) -> tuple[str, ...]:
    """Every doing with every thing, in every frame. In a doing, `*` is the thing, else it comes last."""
    done = [
        doing.replace("*", thing) if "*" in doing else f"{doing} {thing}".rstrip()
        for doing in doings
        for thing in things
    ]
    texts = (
        frame.replace("{do}", do).replace("{limb}", limb) for do in done for frame in frames for limb in limbs
    )
    return tuple(dict.fromkeys(texts))


_REACH = (
    "reach the {colour} {kind}",
    _sentences(
        _ALONE,
        ("reach", "reach for", "move to", "go to", "move the gripper above", "hover over", "approach"),
    ),
    (
        "go over to the {colour} {kind}",
        "move above the {kind} that is {colour}",
        "please approach the {colour} {kind}",
    ),
)

# task: (plain wording, what demonstrations say, what is kept for evaluation). Demonstrations combine verbs,
# names of things and frames, less what is kept: of a dozen sentences a small model learns no parts.
_WORDS: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "reach": _REACH,
    "reach_pad": _REACH,
    "push": (
        "push the {colour} {kind} to the {direction}",
        _sentences(
            _ALONE,
            (
                "push * to the {direction}",
                "push * {direction}",
                "move * to the {direction}",
                "shift * to the {direction}",
                "shift * {direction}",
                "slide * to the {direction}",
            ),
        ),
        ("slide the {colour} {kind} {direction}", "please shift the {colour} {kind} {direction}"),
    ),
    "pick_up": (
        "pick up the {colour} {kind}",
        _sentences(
            _ALONE,
            (
                "pick up",
                "pick * up",
                "grasp * and lift it",
                "grab * and raise it",
                "grab * and lift it",
                "lift",
                "lift up",
                "take",
                "lift up * from the table",
                "lift * from the table",
            ),
        ),
        (
            "grab the {colour} {kind} and lift it",
            "raise the {colour} {kind} from the table",
            "please take the {kind} that is {colour}",
        ),
    ),
    "place": (
        "place the {colour} {kind} on the {pad} pad",
        _sentences(
            _ALONE,
            (
                "place * on the {pad} pad",
                "put * on the {pad} pad",
                "place * onto the {pad} pad",
                "put * onto the {pad} pad",
                "set * down on the {pad} pad",
                "pick up * and put it on the {pad} pad",
                "take * and put it on the {pad} pad",
                "drop * on the {pad} pad",
            ),
        ),
        (
            "take the {colour} {kind} and place it on the {pad} pad",
            "put the {kind} that is {colour} onto the {pad} pad",
        ),
    ),
    "reach_with_arm": (
        "reach the {colour} {kind} with the {arm} arm",
        (
            *_sentences(_BY_ARM, ("reach", "reach for", "approach"), limbs=("arm", "gripper")),
            *_sentences(
                _ALONE,
                ("move the {arm} arm to", "bring the {arm} gripper above", "move the {arm} gripper above"),
            ),
        ),
        (
            "with the {arm} arm, go to the {colour} {kind}",
            "use the {arm} gripper to reach for the {colour} {kind}",
        ),
    ),
    "reach_with_both": (
        "reach the {colour} {kind} with both arms",
        (
            *_sentences(_BY_BOTH, ("reach", "reach for", "approach"), limbs=("arm", "gripper")),
            *_sentences(_ALONE, ("move both arms to", "move both grippers to", "bring both arms to")),
        ),
        ("with both arms, go to the {colour} {kind}", "bring both grippers to the {colour} {kind}"),
    ),
    "pick_up_with_arm": (
        "pick up the {colour} {kind} with the {arm} arm",
        (
            *_sentences(
                _BY_ARM,
                ("pick up", "pick * up", "lift", "lift up", "raise", "take", "grab", "grasp * and lift it"),
                limbs=("arm", "gripper"),
            ),
            *_sentences(_ALONE, ("grasp * with the {arm} gripper and lift it",)),
        ),
        (
            "use the {arm} arm to pick up the {colour} {kind}",
            "with the {arm} gripper, lift the {colour} {kind}",
        ),
    ),
    "touch": (
        "touch the {colour} {kind} with the {arm} hand",
        (
            *_sentences(_BY_HAND, ("touch", "tap", "reach", "reach for"), limbs=("hand",)),
            *_sentences(
                _ALONE,
                (
                    "put the {arm} hand on",
                    "place the {arm} hand on",
                    "put your {arm} hand on",
                    "move the {arm} hand to",
                    "move your {arm} hand to",
                    "bring the {arm} hand to",
                    "bring your {arm} hand to",
                ),
            ),
        ),
        (
            "bring the {arm} hand to the {colour} {kind}",
            "with the {arm} hand, please touch the {kind} that is {colour}",
        ),
    ),
    "point": (
        "point at the {colour} {kind} with the {arm} hand",
        (
            *_sentences(
                _BY_HAND, ("point at", "point to", "point toward", "show", "show me"), limbs=("hand",)
            ),
            *_sentences(
                _ALONE,
                (
                    "point the {arm} hand at",
                    "point the {arm} hand to",
                    "point the {arm} hand toward",
                    "point your {arm} hand at",
                    "point your {arm} hand to",
                ),
            ),
        ),
        (
            "point to the {colour} {kind} with the {arm} hand",
            "with the {arm} hand, show the {kind} that is {colour}",
        ),
    ),
    "wave": (
        "wave with the {arm} hand",
        (
            *_sentences(_BY_HAND, ("wave",), ("",), ("hand",)),
            *_sentences(_ALONE, ("wave the {arm} hand", "wave your {arm} hand"), ("",)),
        ),
        ("use the {arm} hand to wave", "please wave your {arm} hand"),
    ),
    "drive": (
        "drive to the {colour} {kind}",
        _sentences(
            _ALONE, ("drive to", "go to", "move to", "drive up to", "move up to", "go up to", "navigate to")
        ),
        ("please go to the {colour} {kind}", "move up to the {kind} that is {colour}"),
    ),
    "stop_in_front": (
        "stop in front of the {colour} {kind}",
        _sentences(
            _ALONE,
            (
                "stop in front of",
                "stop before",
                "wait in front of",
                "wait before",
                "drive forward and stop in front of",
                "drive and stop in front of",
                "go forward and wait in front of",
                "keep your distance and face",
            ),
        ),
        ("please wait before the {colour} {kind}", "drive and stop in front of the {kind} that is {colour}"),
    ),
    "go_between": (
        "go between the {colour} {kind} and the {other} {kind}",
        _sentences(
            _ALONE,
            (
                "go between",
                "drive between",
                "pass between",
                "move between",
                "drive through between",
                "go through between",
                "pass through between",
            ),
            _PILLARS,
        ),
        (
            "please pass between the {colour} and the {other} {kind}",
            "go through between the {colour} {kind} and the {other} {kind}",
        ),
    ),
}

# task: (wordings of the demonstrations, the plain one first; wordings for evaluation alone)
PHRASES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    task: (tuple(dict.fromkeys((plain, *(text for text in said if text not in kept)))), kept)
    for task, (plain, said, kept) in _WORDS.items()
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
