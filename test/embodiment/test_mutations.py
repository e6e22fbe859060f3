# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to an embodiment file, it loads and works or EmbodimentError says why."""

from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment import EmbodimentError, list_embodiments, load_embodiment, render_prompt
from qwen_vla_ros.embodiment.schema import JointGroup

TEXTS = {
    name: (resources.embodiments_directory() / f"{name}.yaml").read_text() for name in list_embodiments()
}

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
PARSED = {name: yaml.load(text, Loader=LOADER) for name, text in TEXTS.items()}


def dump(values):
    return yaml.dump(values, Dumper=DUMPER, allow_unicode=True)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["arm", "gripper", "joint_position", "waypoint", "eef_delta", "rad", "m", "ego", "absolute", "kind"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


# Files are small, and the machine may be busy.
RUNS = settings(max_examples=100, deadline=None)


def paths(value, path=()):
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*path, key))
    elif isinstance(value, list):
        for k in range(len(value)):
            yield from paths(value[k], (*path, k))


def load_and_use(path):
    body, refusal = None, None
    try:
        body = load_embodiment(path)
    except EmbodimentError as error:
        refusal = error
    if body is None:
        assert refusal.faults
        assert len(str(refusal).splitlines()) == 1 + len(refusal.faults)
        return
    assert body.layout.mask(64, 64).any()
    for group in body.actions:
        assert len(group.channels) == len(group.units)
        if isinstance(group, JointGroup):
            assert (group.limits.position[:, 0] < group.limits.position[:, 1]).all()
    if not body.prompt.state:
        assert render_prompt(body, "go").views


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutations")


@RUNS
@given(data=st.data())
def test_values(folder, data):
    name = data.draw(st.sampled_from(sorted(TEXTS)))
    values = copy.deepcopy(PARSED[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list(paths(values))[1:]))
        parent = values
        for element in place[:-1]:
            parent = parent[element]
        action = data.draw(st.sampled_from(["replace", "delete", "duplicate", "rename"]))
        if action == "delete":
            del parent[place[-1]]
        elif action == "replace":
            parent[place[-1]] = data.draw(VALUES)
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[place[-1]]))
        else:
            parent[data.draw(st.text(max_size=8))] = parent.pop(place[-1])
        if len(list(paths(values))) < 2:
            break
    path = folder / f"{name}.yaml"
    path.write_text(dump(values), encoding="utf-8")
    load_and_use(path)


@RUNS
@given(data=st.data())
def test_bytes(folder, data):
    name = data.draw(st.sampled_from(sorted(TEXTS)))
    content = TEXTS[name].encode()
    start = data.draw(st.integers(0, len(content)))
    end = min(len(content), start + data.draw(st.integers(0, 40)))
    syntax = st.text("{}[]:,-&*!|>#'\"%@`\n\t 0e.", max_size=12).map(str.encode)
    path = folder / f"{name}.yaml"
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=12) | syntax) + content[end:])
    load_and_use(path)


@RUNS
@given(value=VALUES)
def test_anything(folder, value):
    path = folder / "anything.yaml"
    path.write_text(dump(value), encoding="utf-8")
    load_and_use(path)
