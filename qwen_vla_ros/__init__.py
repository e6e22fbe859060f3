# SPDX-License-Identifier: Apache-2.0
"""Qwen-VLA policies on ROS 2 robots."""

from pkgutil import extend_path

# The generated msg, srv and action modules may lie in another directory on sys.path (a colcon overlay).
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
