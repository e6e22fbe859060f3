# SPDX-License-Identifier: Apache-2.0
"""What is added around a robot: floor, light, tables, objects, cameras.

Geom groups: 0 is drawn in every view, 1 in policy views only, 2 in spectator views only.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

SHARED, POLICY_ONLY, SPECTATOR_ONLY = 0, 1, 2

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.10),
    "green": (0.10, 0.66, 0.20),
    "blue": (0.10, 0.28, 0.88),
    "yellow": (0.96, 0.80, 0.06),
    "purple": (0.52, 0.12, 0.66),
}
KINDS = ("cube", "ball", "cylinder", "pad", "pillar")


def classes() -> tuple[str, ...]:
    """Every colour of every kind, as instructions name them."""
    return tuple(f"{colour} {kind}" for kind in KINDS for colour in COLOURS)


# Surfaces of tables and floors: one picture each, made when a model is built.
SURFACES = ("plain", "planks", "checker", "speckle")

_GEOM = mujoco.mjtGeom


def dress(
    spec: mujoco.MjSpec, centre: tuple[float, float, float] = (0.3, 0.0, 0.3), extent: float = 1.0
) -> None:
    """Give a robot's model our sky and light, in place of its own.

    centre (3,), extent: of what casts shadows [m].
    """
    for texture in list(spec.textures):
        if texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX:
            spec.delete(texture)
    for light in list(spec.lights):
        spec.delete(light)
    for key in list(spec.keys):
        spec.delete(key)
    visual = spec.visual
    visual.headlight.ambient = [0.34, 0.34, 0.36]
    visual.headlight.diffuse = [0.32, 0.32, 0.32]
    visual.headlight.specular = [0.08, 0.08, 0.08]
    visual.map.znear = 0.02 / extent
    visual.map.fogstart = 6.0 / extent
    visual.map.fogend = 18.0 / extent
    visual.map.shadowclip = 1.5
    visual.rgba.haze = [0.80, 0.85, 0.90, 1.0]
    spec.stat.extent = extent
    spec.stat.center = list(centre)
    spec.add_texture(
        name="room_sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.78, 0.85, 0.92],
        rgb2=[0.93, 0.95, 0.97],
        width=64,
        height=384,
    )
    _checker(spec, "room_floor", (0.66, 0.69, 0.73), (0.60, 0.63, 0.68), repeat=(1.0, 1.0))
    sun = np.array([-0.35, 0.42, -1.0])
    spec.worldbody.add_light(
        name="room_sun",
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=np.subtract(centre, 3.0 * sun),
        dir=sun,
        diffuse=[0.55, 0.54, 0.50],
        specular=[0.15, 0.15, 0.15],
        castshadow=True,
    )
    spec.worldbody.add_light(
        name="room_fill",
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[-1.0, 1.2, 3.0],
        dir=[0.5, -0.4, -1.0],
        diffuse=[0.16, 0.17, 0.20],
        specular=[0.0, 0.0, 0.0],
        castshadow=False,
    )


def add_floor(spec: mujoco.MjSpec, z: float = 0.0, **contact: float) -> None:
    """An endless floor at height z [m]."""
    spec.worldbody.add_geom(
        name="room_floor",
        type=_GEOM.mjGEOM_PLANE,
        size=[0, 0, 0.1],
        pos=[0, 0, z],
        material="room_floor",
        group=SHARED,
        **contact,
    )


def add_table(
    spec: mujoco.MjSpec, centre: Sequence[float], size: Sequence[float], floor: float, collide: bool = True
) -> None:
    """A table. centre (3,): of the upper face [m]. size (2,): full length and width [m]."""
    thickness = 0.04
    x, y, z = centre
    spec.add_material(name="table_top", rgba=[0.80, 0.70, 0.57, 1.0], specular=0.15, shininess=0.3)
    spec.add_material(name="table_leg", rgba=[0.28, 0.29, 0.31, 1.0], specular=0.3, shininess=0.5)
    body = spec.worldbody.add_body(name="table_body", pos=[x, y, 0.0])
    contact = int(collide)
    body.add_geom(
        name="table_top",
        type=_GEOM.mjGEOM_BOX,
        size=[size[0] / 2, size[1] / 2, thickness / 2],
        pos=[0, 0, z - thickness / 2],
        material="table_top",
        group=SHARED,
        contype=contact,
        conaffinity=contact,
    )
    height = z - thickness - floor
    for sx in (-1, 1):
        for sy in (-1, 1):
            body.add_geom(
                type=_GEOM.mjGEOM_CYLINDER,
                size=[0.025, height / 2, 0],
                pos=[sx * (size[0] / 2 - 0.06), sy * (size[1] / 2 - 0.06), floor + height / 2],
                material="table_leg",
                group=SPECTATOR_ONLY,
                contype=0,
                conaffinity=0,
            )


def add_camera(
    spec: mujoco.MjSpec,
    name: str,
    position: Sequence[float],
    target: Sequence[float],
    fovy: float,
    body: str | None = None,
) -> None:
    """A camera at `position` (3,) that looks at `target` (3,) [m], up being z; `fovy` is vertical [deg].

    Both points are in the frame of `body`, or of the world.
    """
    forward = np.subtract(target, position).astype(float)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, up, -forward]).ravel())
    parent = spec.worldbody if body is None else spec.body(body)
    parent.add_camera(name=name, pos=list(position), quat=quat, fovy=fovy)


def add_cubes(spec: mujoco.MjSpec, names: Sequence[str], half: float) -> None:
    """Free cubes of half edge `half` [m]; the task places and colours them."""
    for name in names:
        body = spec.worldbody.add_body(name=name)
        body.add_freejoint(name=name)
        body.add_geom(
            name=name,
            type=_GEOM.mjGEOM_BOX,
            size=[half, half, half],
            mass=0.08,
            friction=[1.0, 0.01, 0.001],
            condim=4,
            group=SHARED,
        )


def add_pillars(spec: mujoco.MjSpec, names: Sequence[str], radius: float, height: float) -> None:
    """Pillars that stand where the task puts them."""
    spec.add_material(name="pillar_foot", rgba=[0.25, 0.26, 0.28, 1.0], specular=0.3)
    for name in names:
        body = spec.worldbody.add_body(name=name, mocap=True)
        body.add_geom(
            name=name,
            type=_GEOM.mjGEOM_CYLINDER,
            size=[radius, height / 2, 0],
            pos=[0, 0, height / 2],
            group=SHARED,
        )
        body.add_geom(
            type=_GEOM.mjGEOM_CYLINDER,
            size=[radius * 1.25, 0.02, 0],
            pos=[0, 0, 0.02],
            material="pillar_foot",
            group=SHARED,
            contype=0,
            conaffinity=0,
        )


def add_balls(spec: mujoco.MjSpec, names: Sequence[str], radius: float, stand: float) -> None:
    """Balls, each on a stand of height `stand` [m]; a body's origin is its ball's centre."""
    spec.add_material(name="ball_stand", rgba=[0.30, 0.31, 0.33, 1.0], specular=0.4)
    for name in names:
        body = spec.worldbody.add_body(name=name, mocap=True)
        body.add_geom(
            name=name, type=_GEOM.mjGEOM_SPHERE, size=[radius, 0, 0], group=SHARED, contype=0, conaffinity=0
        )
        length = stand - 0.6 * radius
        body.add_geom(
            type=_GEOM.mjGEOM_CYLINDER,
            size=[0.012, length / 2, 0],
            pos=[0, 0, -radius * 0.6 - length / 2],
            material="ball_stand",
            group=SHARED,
            contype=0,
            conaffinity=0,
        )


def _checker(
    spec: mujoco.MjSpec,
    name: str,
    first: Sequence[float],
    second: Sequence[float],
    repeat: Sequence[float],
) -> None:
    spec.add_texture(
        name=name,
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=list(first),
        rgb2=list(second),
        width=256,
        height=256,
    )
    material = spec.add_material(name=name, texrepeat=list(repeat), texuniform=True, reflectance=0.0)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name


def add_things(spec: mujoco.MjSpec, names: Sequence[str]) -> None:
    """Free bodies that the task turns into cubes, balls and cylinders of its sizes."""
    for name in names:
        body = spec.worldbody.add_body(name=name)
        body.add_freejoint(name=name)
        body.add_geom(
            name=name,
            type=_GEOM.mjGEOM_BOX,
            size=[0.025, 0.025, 0.025],
            mass=0.06,
            # Rolling friction stops balls on a table within a few centimetres.
            friction=[1.0, 0.02, 0.006],
            condim=6,
            group=SHARED,
        )


def add_pads(spec: mujoco.MjSpec, names: Sequence[str], radius: float) -> None:
    """Flat discs to put things on."""
    for name in names:
        body = spec.worldbody.add_body(name=name, mocap=True)
        body.add_geom(
            name=name,
            type=_GEOM.mjGEOM_CYLINDER,
            size=[radius, 0.001, 0],
            pos=[0, 0, 0.001],
            group=SHARED,
            contype=0,
            conaffinity=0,
        )


def add_clutter(spec: mujoco.MjSpec, names: Sequence[str]) -> None:
    """Things that no instruction names; nothing touches them."""
    for name in names:
        body = spec.worldbody.add_body(name=name, mocap=True)
        body.add_geom(
            name=name, type=_GEOM.mjGEOM_BOX, size=[0.03] * 3, group=SHARED, contype=0, conaffinity=0
        )


def add_surfaces(spec: mujoco.MjSpec) -> None:
    """Materials `surface_<name>` of SURFACES, grey, to be coloured by a task."""
    rng = np.random.default_rng(0)
    side = 128
    rows, columns = np.mgrid[0:side, 0:side]
    grain = rng.random((side, 1)).repeat(side, axis=1)
    shades = {
        "plain": np.ones((side, side)),
        "planks": 0.82 + 0.12 * grain + 0.06 * np.sin(columns / 9.0 + 5.0 * grain) - 0.25 * (rows % 32 == 0),
        "checker": 0.80 + 0.20 * ((rows // 32 + columns // 32) % 2),
        "speckle": 0.78 + 0.22 * rng.random((side, side)),
    }
    for name in SURFACES:
        texture = spec.add_texture(
            name=f"surface_{name}", type=mujoco.mjtTexture.mjTEXTURE_2D, width=side, height=side, nchannel=3
        )
        grey = np.clip(255 * shades[name], 0, 255).astype(np.uint8)
        texture.data = grey[:, :, None].repeat(3, axis=2).tobytes()
        material = spec.add_material(
            name=f"surface_{name}", texrepeat=[2.5, 2.5], texuniform=True, specular=0.15, shininess=0.3
        )
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = f"surface_{name}"
