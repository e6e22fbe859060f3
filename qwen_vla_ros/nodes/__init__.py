# SPDX-License-Identifier: Apache-2.0
"""Thin ROS 2 nodes around the rooms that know no ROS."""
