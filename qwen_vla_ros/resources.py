# SPDX-License-Identifier: Apache-2.0
"""Where embodiments, checkpoints and configuration files are found."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "qwen_vla_ros"


def _candidates() -> Iterator[Path]:
    module = Path(__file__)
    # A checkout, also when a colcon overlay links to it.
    yield module.resolve().parent.parent
    # An installation: PREFIX/lib/python3.x/site-packages/qwen_vla_ros, PREFIX/local/lib/... on Debian.
    for parent in module.parents:
        yield parent / "share" / PACKAGE
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if prefix:
            yield Path(prefix) / "share" / PACKAGE
    yield Path(sysconfig.get_path("data")) / "share" / PACKAGE


def share_directory() -> Path:
    """Directory that holds `embodiments/`, `config/` and `checkpoints/`.

    The checkout that this module lies in, else the installation's `share/qwen_vla_ros`.

    Raises:
        FileNotFoundError: there is none; names the places that were searched.
    """
    searched = []
    for candidate in _candidates():
        if (candidate / "embodiments").is_dir():
            return candidate
        searched.append(str(candidate))
    raise FileNotFoundError(
        f"{PACKAGE}: no directory with 'embodiments/' found; searched {', '.join(searched)}. "
        "Install the package again."
    )


def embodiments_directory() -> Path:
    """Directory of the embodiment YAML files that come with the package."""
    return share_directory() / "embodiments"


def embodiment_names() -> list[str]:
    """Names of the embodiments that come with the package, sorted."""
    return sorted(path.stem for path in embodiments_directory().glob("*.yaml"))


def embodiment_path(name_or_path: str) -> Path | None:
    """File of an embodiment; a path need not exist. None: no embodiment of this name comes with the package.

    Text that ends in .yaml or .yml, or that has a path separator, is a path.
    """
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path or os.sep in name_or_path:
        return Path(name_or_path)
    return embodiments_directory() / f"{name_or_path}.yaml" if name_or_path in embodiment_names() else None


def checkpoints_directory() -> Path:
    """Directory of the checkpoints that come with the package; it may not exist."""
    return share_directory() / "checkpoints"


def config_directory() -> Path:
    """Directory of the configuration files, the Fast DDS profile among them."""
    return share_directory() / "config"
