# SPDX-License-Identifier: Apache-2.0
"""Python distribution: for machines without ROS, and the dependencies that `make setup` installs."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "qwen_vla_ros"

CORE = [
    "numpy>=1.26",  # arrays everywhere
    "pydantic>=2.5",  # embodiment schema
    "pyyaml>=6.0",  # embodiment files, with line numbers
    "rich>=13.0",  # tables and progress
    "typer>=0.12",  # command line
]
EXTRAS = {
    "model": [
        "torch>=2.6",  # the policy network
        "transformers>=5.20",  # Qwen3.5 backbone; the last that Python 3.10 can have is 5.20
        "safetensors>=0.4.3",  # checkpoint files
        "tokenizers>=0.21",  # tokenizer of the tiny preset
        "opencv-python-headless>=4.8",  # images to the size of the model
    ],
    "onnx": [
        "onnx>=1.16",  # writing graphs
        "onnxruntime>=1.18",  # running them; onnxruntime-gpu for CUDA and TensorRT
        "opencv-python-headless>=4.8",  # images to the size of the model
        "tokenizers>=0.21",  # the tokenizer, without transformers
    ],
    "motion": [
        "ruckig>=0.14",  # jerk-limited set-points
        "pin>=3.0",  # kinematics of end effectors from a URDF
    ],
    "ros": [
        "opencv-python-headless>=4.8",  # image conversion where cv_bridge is missing
        "transforms3d>=0.4.2",  # quaternions where tf_transformations is missing
    ],
    "rerun": [
        "rerun-sdk>=0.23",  # the plan without RViz; the first with Scalars and set_time
    ],
    "sim": [
        "mujoco>=3.8,<3.9",  # physics and rendering; tested with 3.8, and the ViperX model needs < 3.9
    ],
    "demo": [
        "matplotlib>=3.8",  # pictures of a run
        "opencv-python-headless>=4.8",  # video of a run
        "pillow>=10.0",  # pictures into files
    ],
    "train": [
        "accelerate>=1.0",  # mixed precision, several GPUs
        "av>=12.0",  # frames of videos, by exact time
        "peft>=0.17",  # low-rank adapters
        "pyarrow>=15.0",  # LeRobot datasets
        "scipy>=1.11",  # rotations, many at once
    ],
    "test": [
        "hypothesis>=6.100",  # property tests
        "import-linter>=2.1",  # rules between the rooms
        "mypy>=1.11",  # types
        "pytest>=9.0",  # test runner
        "pytest-cov>=5.0",  # coverage
        "pytest-instafail>=0.5",  # failures are shown when they happen, also by a run that is cut short
        "pytest-xdist>=3.6",  # the rooms without ROS on all cores
        "coverage>=7.10",  # coverage of the node processes
        "ruff>=0.9",  # format and lint
        "scipy>=1.11",  # reference distributions
        "types-pyyaml",  # types of yaml for mypy
    ],
}


def share() -> list[tuple[str, list[str]]]:
    """Embodiments, configuration and checkpoints below share/qwen_vla_ros, folder by folder."""
    found = []
    for top in ("checkpoints", "config", "embodiments"):
        for folder in [Path(top), *sorted(path for path in Path(top).rglob("*") if path.is_dir())]:
            files = [str(path) for path in sorted(folder.glob("*")) if path.is_file()]
            if files:
                found.append((f"share/{PACKAGE}/{folder}", files))
    return found


setup(
    name=PACKAGE,
    version="0.1.0",
    description="Qwen-VLA policies as ROS 2 nodes: images and joint states in, limited commands out",
    author="qwen_vla_ros maintainers",
    author_email="maintainers@qwen-vla-ros.example",
    license="Apache-2.0",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    python_requires=">=3.10",
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["qwen-vla = qwen_vla_ros.cli:app"]},
    data_files=share(),
    zip_safe=False,
)
