# SPDX-License-Identifier: Apache-2.0
"""Real demonstrations, few of them."""

import pytest

from qwen_vla_ros.embodiment import load_embodiment
from qwen_vla_ros.training import demonstrations

SAMPLES, SHARD = 12, 8


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of demonstrations per body, which no test changes."""
    root = tmp_path_factory.mktemp("data")
    for name in ("franka_panda", "tiago_base"):
        demonstrations.make(load_embodiment(name), root / name, SAMPLES, seed=3, shard_size=SHARD)
    return root
