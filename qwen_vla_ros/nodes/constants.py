# SPDX-License-Identifier: Apache-2.0
"""Constants of messages as plain attributes: in the messages each is a property, which a loop feels."""

from __future__ import annotations

from types import SimpleNamespace

from qwen_vla_ros.msg import ExecutorStatus, PolicyStatus


def _constants(kind: type) -> SimpleNamespace:
    return SimpleNamespace(**{name: value for name, value in vars(kind).items() if name.startswith("STATE_")})


State = _constants(ExecutorStatus)
PolicyState = _constants(PolicyStatus)
