"""The promise: a folder becomes outputs."""

import signal

from tests.conftest import Workbench, until


def test_every_file_becomes_its_output(workbench: Workbench) -> None:
    names = workbench.files(100)
    workbench.enqueue()
    workbench.worker()
    assert workbench.ended().state == "done"
    assert workbench.outputs() == names
    assert workbench.check_books().done == 100


def test_sigterm_finishes_the_file_in_hand_and_gives_the_rest_back(workbench: Workbench) -> None:
    workbench.files(40)
    workbench.enqueue(buckets=1, files_per_job=100)
    worker = workbench.worker(processor="tests.processors:slow")
    until(lambda: workbench.status().done, "the first file")
    worker.kill(signal.SIGTERM)
    assert worker.wait(2) == 0
    now = workbench.check_books()
    assert 0 < now.done < 40
    assert now.backlog.pending == 1
    assert now.backlog.in_flight == 0
