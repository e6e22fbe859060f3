# SPDX-License-Identifier: Apache-2.0
"""Joints and links of a URDF file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

MAX_BYTES = 32 * 1024 * 1024
TYPES = ("revolute", "continuous", "prismatic", "fixed", "floating", "planar")
UNITS = {"revolute": "rad", "continuous": "rad", "prismatic": "m"}


class UrdfError(ValueError):
    """A file that cannot be read as URDF. Names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class UrdfJoint:
    """One joint.

    Attributes:
        type: one of `TYPES`.
        parent, child: links.
        lower, upper: position limits [rad] or [m]; None where the file has none.
        velocity: limit [rad/s] or [m/s]; None where the file has none or 0.
        mimic: the joint that it follows, or None.
    """

    name: str
    type: str
    parent: str
    child: str
    lower: float | None = None
    upper: float | None = None
    velocity: float | None = None
    mimic: str | None = None

    @property
    def unit(self) -> str | None:
        """`rad` or `m`; None where the joint has not one number."""
        return UNITS.get(self.type)

    @property
    def moves(self) -> bool:
        """One number says where it is, and it follows no other joint."""
        return self.unit is not None and self.mimic is None


@dataclass(frozen=True)
class Urdf:
    """A robot as its description tells.

    Attributes:
        source: the file.
        links: names, in the order of the file.
        joints: by name, in the order of the file.
    """

    source: str
    name: str
    links: tuple[str, ...]
    joints: Mapping[str, UrdfJoint]

    def chain_to(self, link: str) -> tuple[UrdfJoint, ...]:
        """Joints from the root to a link; empty for the root and for a link that is not there."""
        above = {joint.child: joint for joint in self.joints.values()}
        chain: list[UrdfJoint] = []
        while link in above and len(chain) <= len(above):
            chain.append(above[link])
            link = above[link].parent
        return tuple(reversed(chain))

    @property
    def root(self) -> str:
        """The link that is no child."""
        children = {joint.child for joint in self.joints.values()}
        return next(link for link in self.links if link not in children)


def read_urdf(file: str | os.PathLike[str]) -> Urdf:
    """Read a URDF file; meshes are not looked at.

    Raises:
        UrdfError: no such file, not XML, xacro that is not expanded, or no tree of links and joints.
    """
    path = Path(file)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UrdfError(f"{path}: cannot be read ({error.strerror}); give the path of a URDF file") from error
    return parse_urdf(content, path)


def parse_urdf(content: bytes, source: str | os.PathLike[str]) -> Urdf:
    """As `read_urdf`, of what a file or a topic held; source: for messages."""
    path = Path(source)
    if len(content) > MAX_BYTES:
        raise UrdfError(f"{path}: {len(content)} bytes, expected at most {MAX_BYTES}")
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise UrdfError(f"{path}: document types and entities are not read; remove them")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UrdfError(f"{path}: not XML ({error})") from error
    if root.tag != "robot":
        kind = "an MJCF model" if root.tag == "mujoco" else f"<{root.tag}>"
        raise UrdfError(f"{path}: found {kind}, expected a URDF file, whose root is <robot>")
    if any(element.tag.startswith("{") and "xacro" in element.tag for element in root.iter()):
        stem = path.stem.split(".")[0]
        # The shell empties the file that it writes to before xacro reads.
        expanded = f"{stem}.urdf" if path.name != f"{stem}.urdf" else f"{stem}_expanded.urdf"
        raise UrdfError(f"{path}: found xacro; expand it: xacro {path.name} > {expanded}")
    links = tuple(name for element in root.findall("link") if (name := element.get("name")))
    joints: dict[str, UrdfJoint] = {}
    for joint in _joints(root, path):
        if joint.name in joints:
            raise UrdfError(f"{path}: joint {joint.name!r} a second time; each name once")
        joints[joint.name] = joint
    _check_tree(path, links, joints)
    return Urdf(str(path), root.get("name") or path.stem, links, joints)


def _joints(root: ElementTree.Element, path: Path) -> Iterator[UrdfJoint]:
    # Not iter(): <transmission> and <ros2_control> have joints too.
    for element in root.findall("joint"):
        name, kind = element.get("name") or "", element.get("type") or ""
        parent, child = element.find("parent"), element.find("child")
        if not name or kind not in TYPES or parent is None or child is None:
            raise UrdfError(
                f"{path}: joint {name!r} of type {kind!r}; expected a name, parent, child and a type of "
                f"{', '.join(TYPES)}"
            )
        limit, mimic = element.find("limit"), element.find("mimic")
        lower = upper = velocity = None
        if limit is not None:
            velocity = _number(limit, "velocity", path, name) or None
            if kind in ("revolute", "prismatic"):
                # The specification's default is 0; what is given as infinite is no limit.
                lower, upper = (
                    _number(limit, key, path, name) if key in limit.attrib else 0.0
                    for key in ("lower", "upper")
                )
                if lower is not None and upper is not None and lower >= upper:
                    lower = upper = None
        yield UrdfJoint(
            name,
            kind,
            parent.get("link") or "",
            child.get("link") or "",
            lower,
            upper,
            velocity,
            None if mimic is None else mimic.get("joint"),
        )


def _number(element: ElementTree.Element, key: str, path: Path, joint: str) -> float | None:
    text = element.get(key)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UrdfError(f"{path}: joint {joint}: {key}: found {text!r}, expected a number")
    return number if math.isfinite(number) else None


def _check_tree(path: Path, links: tuple[str, ...], joints: Mapping[str, UrdfJoint]) -> None:
    known = set(links)
    children: set[str] = set()
    for joint in joints.values():
        for link in (joint.parent, joint.child):
            if link not in known:
                raise UrdfError(f"{path}: joint {joint.name}: no link {link!r}; expected one of the file")
        if joint.child in children:
            raise UrdfError(f"{path}: link {joint.child!r} has two parents; expected a tree")
        children.add(joint.child)
    roots = [link for link in links if link not in children]
    if len(roots) != 1:
        raise UrdfError(f"{path}: found {len(roots)} root links ({', '.join(roots) or 'none'}), expected one")
