# SPDX-License-Identifier: Apache-2.0
"""A robot's URDF or MJCF file as a MuJoCo model without actuators, and what of it could not be used."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import mujoco

from qwen_vla_ros.embodiment.urdf import Urdf, UrdfError, read_urdf
from qwen_vla_ros.sim.errors import SimulationError

# MuJoCo's own limit of an STL file.
_MAX_FACES = 200_000
_READABLE = (".stl", ".obj", ".msh")
# What stands for a mass that a file does not give: a rod of this mass per length [kg/m], at least so heavy.
_ROD, _LEAST_MASS = 3.0, 0.05
_EQUAL_JOINTS = mujoco.mjtEq.mjEQ_JOINT
_EQUAL_BODIES = (mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD)


@dataclass
class RobotModel:
    """A robot to be put into a scene.

    Attributes:
        spec: Links and joints; joints that nobody asked for are rigid.
        joints: All that could move, in the order of the file.
        mimics: Joint to (leader, factor).
        notes: What was left out or guessed, for people.
        urdf: Text of the file, if it is one.
        bare: Links that the file gives shapes of which none could be used.
    """

    spec: mujoco.MjSpec
    joints: tuple[str, ...]
    mimics: dict[str, tuple[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    urdf: str | None = None
    bare: frozenset[str] = frozenset()


def read_model(path: Path, wanted: Collection[str]) -> RobotModel:
    """Read a model.

    Args:
        path: URDF or MJCF; told apart by the root element.
        wanted: Joints that are to move.

    Raises:
        SimulationError: The file is absent, is neither, or MuJoCo refuses it; names it.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise SimulationError(
            f"{path}: cannot be read ({error.strerror}); expected a URDF or MJCF file"
        ) from error
    except ElementTree.ParseError as error:
        raise SimulationError(f"{path}: not XML ({error}); expected a URDF or MJCF file") from error
    if root.tag == "robot":
        return _read_urdf(path, root, wanted)
    if root.tag == "mujoco":
        return _read_mjcf(path, wanted)
    raise SimulationError(f"{path}: found <{root.tag}>, expected URDF (<robot>) or MJCF (<mujoco>)")


# URDF


def _read_urdf(path: Path, root: ElementTree.Element, wanted: Collection[str]) -> RobotModel:
    try:
        urdf = read_urdf(path)
    except UrdfError as error:
        raise SimulationError(str(error)) from error
    movable = tuple(joint.name for joint in urdf.joints.values() if joint.unit is not None)
    mimics = _mimics(root, movable)
    moving = {*wanted, *(name for name, (leader, _) in mimics.items() if leader in wanted)}
    notes: list[str] = []
    meshes = _Meshes(path)
    robot = ElementTree.Element("robot", name=urdf.name)
    # MuJoCo by default strips paths, drops visuals and fuses links.
    ElementTree.SubElement(ElementTree.SubElement(robot, "mujoco"), "compiler", _COMPILER)
    robot.extend(root.findall("material"))
    guessed = 0
    for link in root.findall("link"):
        copy = ElementTree.SubElement(robot, "link", name=link.get("name") or "")
        guessed += _add_mass(copy, link, _reach(urdf, root, link.get("name") or ""))
        for kind in ("visual", "collision"):
            copy.extend(shape for shape in link.findall(kind) if meshes.take(shape))
    for joint in root.findall("joint"):
        _add_joint(robot, joint, urdf, moving)
    still = [name for name in movable if name not in moving]
    if still:
        notes.append(f"joints that no action group moves are rigid: {_some(still)}")
    if guessed:
        notes.append(f"{guessed} of {len(urdf.links)} links have no mass: guessed from their length")
    spec = _from_text(path, robot, meshes)
    notes += meshes.notes
    for joint in spec.joints:
        joint.actfrclimited = mujoco.mjtLimited.mjLIMITED_FALSE  # efforts of URDF files are often made up
    bare = _shaped(root) - _shaped(robot)
    return RobotModel(spec, movable, mimics, notes, path.read_text(errors="replace"), bare)


_COMPILER = {
    "strippath": "false",
    "discardvisual": "false",
    "fusestatic": "false",
    "balanceinertia": "true",
    "boundmass": "0.001",
    "boundinertia": "1e-6",
}


def _shaped(robot: ElementTree.Element) -> frozenset[str]:
    """Links with a visual or a collision."""
    return frozenset(
        link.get("name") or ""
        for link in robot.findall("link")
        if link.find("visual") is not None or link.find("collision") is not None
    )


def _from_text(path: Path, robot: ElementTree.Element, meshes: _Meshes) -> mujoco.MjSpec:
    """The model; meshes that MuJoCo refuses are dropped."""
    while True:
        text = ElementTree.tostring(robot, encoding="unicode")
        try:
            # A spec that was compiled with assets cannot be compiled again without them.
            mujoco.MjSpec.from_string(text, assets=meshes.content).compile()
            return mujoco.MjSpec.from_string(text, assets=meshes.content)
        except ValueError as error:
            if not meshes.drop(robot, str(error)):
                raise SimulationError(f"{path}: MuJoCo refuses it: {_line(error)}") from error


def _mimics(root: ElementTree.Element, movable: Collection[str]) -> dict[str, tuple[str, float]]:
    found = {}
    for joint in root.findall("joint"):
        mimic, name = joint.find("mimic"), joint.get("name") or ""
        if mimic is not None and name in movable:
            found[name] = (mimic.get("joint") or "", float(mimic.get("multiplier") or 1.0))
    for name, (leader, factor) in list(found.items()):
        seen = {name}
        while leader in found and leader not in seen:
            seen.add(leader)
            leader, more = found[leader]
            factor *= more
        found[name] = (leader, factor)
    return found


def _add_joint(robot: ElementTree.Element, joint: ElementTree.Element, urdf: Urdf, moving: set[str]) -> None:
    name = joint.get("name") or ""
    known = urdf.joints[name]
    limited = known.lower is not None and known.upper is not None
    kind = known.type if name in moving else "fixed"
    if kind == "revolute" and not limited:
        kind = "continuous"
    copy = ElementTree.SubElement(robot, "joint", name=name, type=kind)
    for tag in ("parent", "child", "origin"):
        copy.extend(joint.findall(tag))
    if kind == "fixed":
        return
    axis = joint.find("axis")
    ElementTree.SubElement(copy, "axis", xyz=(axis is not None and axis.get("xyz")) or "1 0 0")
    if limited and kind != "continuous":
        limits = {"lower": str(known.lower), "upper": str(known.upper), "effort": "0", "velocity": "0"}
        ElementTree.SubElement(copy, "limit", limits)


def _reach(urdf: Urdf, root: ElementTree.Element, link: str) -> float:
    """How far the farthest child's origin is from a link's [m]."""
    lengths = [0.0]
    for joint in root.findall("joint"):
        origin = joint.find("origin")
        if urdf.joints[joint.get("name") or ""].parent == link and origin is not None:
            lengths.append(math.hypot(*map(float, (origin.get("xyz") or "0").split())))
    return max(lengths)


def _add_mass(copy: ElementTree.Element, link: ElementTree.Element, length: float) -> bool:
    """The link's inertia, or that of a rod; true when it was guessed."""
    inertial = link.find("inertial")
    mass = None if inertial is None else inertial.find("mass")
    if inertial is not None and mass is not None and inertial.find("inertia") is not None:
        try:
            given = float(mass.get("value") or 0.0)
        except ValueError:
            given = 0.0
        if math.isfinite(given) and given > 0.0:
            copy.append(inertial)
            return False
    weight = max(_LEAST_MASS, _ROD * length)
    turn = f"{weight * (length**2 / 12 + 0.02**2):.6g}"
    added = ElementTree.SubElement(copy, "inertial")
    ElementTree.SubElement(added, "mass", value=f"{weight:.6g}")
    ElementTree.SubElement(added, "inertia", ixx=turn, iyy=turn, izz=turn, ixy="0", ixz="0", iyz="0")
    return True


class _Meshes:
    """Mesh files of a URDF, under names of our own: two folders may hold files of one name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, bytes] = {}
        self._names: dict[Path, str] = {}
        self._left: dict[str, list[str]] = {}

    @property
    def notes(self) -> list[str]:
        return [
            f"{len(files)} meshes left out, {why}: {_some(files)}"
            for why, files in sorted(self._left.items())
        ]

    def take(self, shape: ElementTree.Element) -> bool:
        """Whether a visual or collision can be used; its mesh is loaded, and renamed in place."""
        geometry = shape.find("geometry")
        if geometry is None or not len(geometry):
            return False
        mesh = geometry.find("mesh")
        if mesh is None:
            # MuJoCo knows these alone.
            return geometry[0].tag in ("box", "sphere", "cylinder", "capsule")
        named = mesh.get("filename") or ""
        file = self._find(named)
        if file is None:
            return self._leave(named, "not found")
        name = self._names.get(file) or self._load(file)
        if name is None:
            return False
        mesh.set("filename", name)
        return True

    def drop(self, robot: ElementTree.Element, message: str) -> bool:
        """Take out the mesh that an error of MuJoCo names; false when it names none."""
        for file, name in self._names.items():
            if name in self.content and re.search(rf"\b{Path(name).stem}\b", message):
                self._leave(file.name, f"refused by MuJoCo ({_line(message)})")
                del self.content[name]
                for link in robot.findall("link"):
                    for shape in [*link.findall("visual"), *link.findall("collision")]:
                        if any(mesh.get("filename") == name for mesh in shape.iter("mesh")):
                            link.remove(shape)
                return True
        return False

    def _leave(self, name: str, why: str) -> bool:
        files = self._left.setdefault(why, [])
        if name not in files:
            files.append(name)
        return False

    def _load(self, file: Path) -> str | None:
        suffix = file.suffix.lower()
        if suffix not in _READABLE:
            self._leave(
                file.name, f"of a format that MuJoCo does not read ({suffix}; convert to .stl or .obj)"
            )
            return None
        content = file.read_bytes()
        if suffix == ".stl":
            faces = int.from_bytes(content[80:84], "little")
            if len(content) != 84 + 50 * faces:
                self._leave(file.name, "no binary STL (convert it)")
                return None
            if not 1 <= faces <= _MAX_FACES:
                self._leave(file.name, f"of {faces} faces, MuJoCo takes 1 to {_MAX_FACES}")
                return None
        name = f"mesh{len(self._names)}x{suffix}"
        self._names[file], self.content[name] = name, content
        return name

    def _find(self, named: str) -> Path | None:
        for candidate in self._candidates(named):
            if candidate.is_file():
                return candidate.resolve()
        return None

    def _candidates(self, named: str) -> Iterator[Path]:
        folder = self._path.resolve().parent
        scheme, _, rest = named.partition("://")
        if not rest:
            yield folder / named
        elif scheme == "file":
            yield Path("/" + rest.lstrip("/"))
        elif scheme in ("package", "model"):
            package, _, inside = rest.partition("/")
            for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
                yield Path(prefix) / "share" / rest
            for above in (folder, *folder.parents):
                yield above / rest
                if above.name == package or above == folder:
                    yield above / inside


# MJCF


def _read_mjcf(path: Path, wanted: Collection[str]) -> RobotModel:
    try:
        spec = mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise SimulationError(f"{path}: MuJoCo refuses it: {_line(error)}") from error
    notes: list[str] = []
    for kind in ("keys", "sensors", "actuators", "lights"):
        elements = list(getattr(spec, kind))
        if elements and kind == "actuators":
            notes.append(f"{len(elements)} actuators replaced by position servos")
        for element in elements:
            spec.delete(element)
    for texture in list(spec.textures):
        if texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            spec.delete(texture)
    for geom in list(spec.worldbody.geoms):
        if geom.type == mujoco.mjtGeom.mjGEOM_PLANE:
            spec.delete(geom)
    names = {}
    for number, joint in enumerate(spec.joints):
        joint.name = joint.name or f"joint_{number}"
        names[joint.name] = joint
    scalar = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
    movable = tuple(name for name, joint in names.items() if joint.type in scalar)
    kept = _coupled(spec, {name for name in wanted if name in names})
    _forget(spec, {name for name in names if name not in kept})
    still = [name for name in movable if name not in kept]
    if still:
        notes.append(f"joints that no action group moves are rigid: {_some(still)}")
    if len(movable) < len(names):
        notes.append("free and ball joints are rigid: the robot's base is fixed")
    return RobotModel(spec, movable, {}, notes)


def _coupled(spec: mujoco.MjSpec, wanted: set[str]) -> set[str]:
    """The wanted joints and those that constraints make move with them."""
    kept = set(wanted)
    groups = [
        {equality.name1, equality.name2} - {""}
        for equality in spec.equalities
        if equality.type == _EQUAL_JOINTS
    ]
    for tendon in spec.tendons:
        groups.append({wrap.target.name for wrap in tendon.path if wrap.type == mujoco.mjtWrap.mjWRAP_JOINT})
    # Linkages are closed by constraints between bodies.
    for equality in spec.equalities:
        if equality.type in _EQUAL_BODIES and equality.objtype == mujoco.mjtObj.mjOBJ_BODY:
            one, other = (_above(spec.body(name)) for name in (equality.name1, equality.name2))
            groups.append(one ^ other)
    for _ in groups:
        for group in groups:
            if kept & group:
                kept |= group
    return kept


def _above(body: mujoco.MjsBody | None) -> set[str]:
    """Joints from the root to a body."""
    found: set[str] = set()
    while body is not None and body.name != "world":
        found |= {joint.name for joint in body.joints}
        body = body.parent
    return found


def _forget(spec: mujoco.MjSpec, joints: set[str]) -> None:
    """Delete joints and what refers to them."""
    for equality in list(spec.equalities):
        if equality.type == _EQUAL_JOINTS and {equality.name1, equality.name2} & joints:
            spec.delete(equality)
    for tendon in list(spec.tendons):
        paths = [wrap.target.name for wrap in tendon.path if wrap.type == mujoco.mjtWrap.mjWRAP_JOINT]
        if joints & set(paths):
            spec.delete(tendon)
    for joint in list(spec.joints):
        if joint.name in joints:
            spec.delete(joint)


def _some(names: list[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _line(error: object) -> str:
    return " ".join(str(error).split())
