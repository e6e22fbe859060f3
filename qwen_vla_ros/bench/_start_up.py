# SPDX-License-Identifier: Apache-2.0
"""How long a process takes from its start to a policy that is ready, and what memory that needs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen_vla_ros.embodiment import load_embodiment

BODY = "so101"  # two views, H = 16


@dataclass(frozen=True)
class StartUp:
    """Of a process of its own, its files in the cache: `load_policy` and `configure` of backend `engine`.

    Attributes:
        total: From the start of the process to a policy that is ready [s].
        imports, load, configure: Parts of it [s].
        weights_mib: Of the model's parameters, as they are held.
        host_mib: Most memory of the host that no file stands for; on a CPU with the weights.
        device_mib: Most memory that torch took on the device; 0 on a CPU.
        engine: How it runs.
    """

    total: float
    imports: float
    load: float
    configure: float
    weights_mib: float
    host_mib: float
    device_mib: float
    engine: str


def measure(preset: str, device: str, dtype: str, beside: Path) -> StartUp:
    """Write a checkpoint with random weights into a folder in `beside`, start twice, and time the second.

    Raises:
        OSError: The weights do not fit on the disk.
        RuntimeError: The process failed; holds the end of what it said.
    """
    import torch

    from qwen_vla_ros.bench import _latency as latency
    from qwen_vla_ros.model.checkpoint import save_checkpoint

    body = load_embodiment(BODY)
    config, processor = latency.configuration(preset, body.horizon)
    count = body.layout.count
    entry = {
        "channels": list(body.layout.names),
        "q01": [-1.0] * count,
        "q99": [1.0] * count,
        "control_rate": body.control_rate,
        "horizon": body.horizon,
    }
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="start_up_", dir=beside) as folder:
        model = latency.random_model(config, torch.device(device), getattr(torch, dtype))
        save_checkpoint(folder, model, processor, {body.name: entry})
        del model
        latency.release()
        command = [sys.executable, "-m", "qwen_vla_ros.bench._start_up", folder, "--device", device]
        command += ["--threads", str(torch.get_num_threads())]
        for _ in range(2):
            began = ["--began", repr(time.time())]
            done = subprocess.run([*command, *began], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                tail = " ".join(done.stderr.splitlines()[-3:])
                raise RuntimeError(f"start-up: ended with {done.returncode}: {tail}")
    return StartUp(**json.loads(done.stdout.splitlines()[-1]))


class Memory(threading.Thread):
    """Watches the memory of this process that no file stands for.

    Attributes:
        most: Of all looks, every 10 ms [bytes].
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._ended = threading.Event()

    def look(self) -> None:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                self.most = max(self.most, 1024 * int(line.split()[1]))

    def run(self) -> None:
        while not self._ended.wait(0.01):
            self.look()

    def end(self) -> int:
        self._ended.set()
        self.join()
        self.look()
        return self.most


def start(folder: str, device: str, threads: int, began: float) -> StartUp:
    """What `measure` times. began: time.time() before the process was started [s]."""
    memory = Memory()
    memory.start()
    import torch

    from qwen_vla_ros.policy.local import LocalPolicy

    imported = time.time()
    policy = LocalPolicy.load(folder, device, threads=threads, engine=True)
    loaded = time.time()
    policy.configure(load_embodiment(BODY))
    ready = time.time()
    cuda = policy.info.device.startswith("cuda")
    weights = sum(p.numel() * p.element_size() for p in policy._model.parameters())
    return StartUp(
        ready - began,
        imported - began,
        loaded - imported,
        ready - loaded,
        weights / 2**20,
        memory.end() / 2**20,
        torch.cuda.max_memory_allocated(policy.info.device) / 2**20 if cuda else 0.0,
        policy.info.details["engine"],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--began", type=float, required=True)
    found = start(**vars(parser.parse_args()))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
