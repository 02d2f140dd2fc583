"""The promise: two versions of imece on one Redis work together, or say that they do not.

There is no release yet. The other version here is this one, with another number for the format of
its records.
"""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from imece.run.parameters import FORMAT
from tests.conftest import ROOT, Workbench, until

OTHER_WORKER = """
import imece.run.parameters
imece.run.parameters.FORMAT += 1
from imece_worker.__main__ import main
main()
"""


@pytest.fixture
def other_worker(workbench: Workbench) -> Iterator["subprocess.Popen[bytes]"]:
    """A run of this version is on, with a worker of it; and there is one of the next version."""
    workbench.files(80)
    workbench.settings["processor"] = "tests.processors:slow"
    workbench.enqueue(buckets=1, files_per_job=20)
    workbench.worker().took()
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_WORKER], env=workbench.environment(), cwd=ROOT
    ) as process:
        yield process
        process.kill()


def test_a_worker_of_another_format_holds_a_run_that_is_on_and_says_why(
    workbench: Workbench, other_worker: "subprocess.Popen[bytes]"
) -> None:
    names = sorted(path.name for path in workbench.source.iterdir())
    until(lambda: workbench.status().is_held, "the run to be held")
    reason = workbench.status().blocking_reason or ""
    assert "another version of imece enqueued it" in reason
    assert f"its records have format {FORMAT}, and this version has {FORMAT + 1}" in reason
    assert "`imece resume run`" in reason
    other_worker.terminate()
    assert other_worker.wait(20) == 0
    assert workbench.imece("resume", "run").returncode == 0
    now = workbench.ended()  # of a round with what was left
    assert (now.state, now.left, now.failed) == ("done", 0, 0)
    assert workbench.outputs() == names


def test_commands_say_that_a_run_is_of_another_version(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue()
    key = workbench.run().key
    newer = json.loads(workbench.redis.hget(key, "parameters") or b"") | {
        "format": FORMAT + 1,
        "size": 32,
    }
    workbench.redis.hset(key, "parameters", json.dumps(newer))
    for words in (["status", "run"], ["wait", "run"]):
        answer = workbench.imece(*words)
        assert answer.returncode == 2, answer
        assert "another version of imece enqueued it" in answer.stderr
        assert "Traceback" not in answer.stderr
    assert workbench.imece("cancel", "run").returncode == 0
    assert workbench.imece("delete", "run").returncode == 0
