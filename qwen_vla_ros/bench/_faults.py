# SPDX-License-Identifier: Apache-2.0
"""Run the fault suite many times, `make faults COUNT=20`: passes and time to safe of each fault."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

SUITE = (
    "test/nodes/test_faults.py",
    "test/nodes/test_policy_faults.py",
    "test/nodes/test_executor_faults.py",
)
TIME_TO_SAFE = "time to safe [s]"


class Tally:
    """What became of each fault.

    Attributes:
        passed, runs: by name of the test.
        times: to safe, where a test measures it [s].
    """

    def __init__(self) -> None:
        self.passed: dict[str, int] = defaultdict(int)
        self.runs: dict[str, int] = defaultdict(int)
        self.times: dict[str, list[float]] = defaultdict(list)

    def add(self, report: Path) -> list[str]:
        """Count one run by pytest's JUnit report; the names of what failed."""
        failed = []
        for case in ET.parse(report).getroot().iter("testcase"):
            if case.find("skipped") is not None:
                continue
            name = case.get("name", "").removeprefix("test_")
            self.runs[name] += 1
            if case.find("failure") is None and case.find("error") is None:
                self.passed[name] += 1
            else:
                failed.append(name)
            for fact in case.iter("property"):
                if fact.get("name") == TIME_TO_SAFE:
                    self.times[name].append(float(fact.get("value", "nan")))
        return failed

    def table(self) -> Table:
        table = Table(
            Column("fault", overflow="fold"),
            "passed",
            "time to safe, median [s]",
            Column("max [s]", no_wrap=True),
        )
        for name, runs in self.runs.items():
            times = self.times[name]
            figures = (f"{statistics.median(times):.2f}", f"{max(times):.2f}") if times else ("", "")
            table.add_row(escape(name), f"{self.passed[name]}/{runs}", *figures)
        return table


def main() -> int:
    """The exit code: 1 when a fault failed once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="how many times (default: %(default)s)")
    parser.add_argument("-k", default="", help="as pytest's: which faults")
    options = parser.parse_args()
    console, tally = Console(), Tally()
    with tempfile.TemporaryDirectory(prefix="qwen_vla_faults_") as folder:
        for run in range(1, options.count + 1):
            report, log = Path(folder) / f"{run}.xml", Path(folder) / f"{run}.log"
            command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *SUITE]
            command += ["-o", "junit_family=legacy"]  # the one that has properties of tests
            with log.open("wb") as stream:
                code = subprocess.run(
                    [*command, "-k", options.k] if options.k else command,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    check=False,
                ).returncode
            if code not in (0, 1) or not report.is_file():
                console.print(log.read_text(errors="replace"), markup=False)
                raise SystemExit(f"pytest ended with {code}")
            failed = tally.add(report)
            console.print(f"run {run} of {options.count}: {', '.join(failed) or 'all passed'}", markup=False)
            if failed:
                console.print(log.read_text(errors="replace"), markup=False)
    console.print(tally.table())
    return int(tally.passed != tally.runs)


if __name__ == "__main__":
    sys.exit(main())
