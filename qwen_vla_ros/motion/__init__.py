# SPDX-License-Identifier: Apache-2.0
"""From action chunks to commands a motor can follow. Knows neither ROS nor torch."""
