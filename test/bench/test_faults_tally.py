# SPDX-License-Identifier: Apache-2.0
"""The table of the fault suite counts what pytest reports."""

from __future__ import annotations

from qwen_vla_ros.bench._faults import Tally

REPORT = """<testsuites><testsuite>
<testcase name="test_one"><properties><property name="time to safe [s]" value="{}"/></properties></testcase>
<testcase name="test_two">{}</testcase>
<testcase name="test_away"><skipped message="needs ROS 2"/></testcase>
</testsuite></testsuites>"""


def test_passes_and_times_are_counted(tmp_path):
    tally = Tally()
    for time, inside, failed in (
        (0.2, "", []),
        (0.4, '<failure message="no"/>', ["two"]),
        (0.3, '<error message="no"/>', ["two"]),
    ):
        report = tmp_path / "report.xml"
        report.write_text(REPORT.format(time, inside))
        assert tally.add(report) == failed
    assert tally.runs == {"one": 3, "two": 3}
    assert (tally.passed["one"], tally.passed["two"]) == (3, 1)
    assert tally.times["one"] == [0.2, 0.4, 0.3]
    assert tally.table().row_count == 2
