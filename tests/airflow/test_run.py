"""One task for one run: `dag.test()` with real workers and a real server."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from imece.run.store import Run
from tests.airflow.conftest import dag_named, listed
from tests.conftest import Workbench, until

pytestmark = pytest.mark.usefixtures("airflow_database")


def run(workbench: Workbench, **params: Any) -> Any:
    """Runs the DAG once; its only task, ended."""
    conf = {"input": str(workbench.source), "output": str(workbench.target), **params}
    dag_run = dag_named("one_run").test(run_conf=conf)
    [task] = dag_run.get_task_instances()
    return task


def test_a_run_is_done_by_workers_and_its_figures_come_back(connected: Workbench) -> None:
    names = connected.files(30)
    connected.worker()
    task = run(connected, include="*.txt\n/no/such", buckets=4)
    assert task.state == "success"
    assert connected.outputs() == names
    assert task.xcom_pull(task_ids="run") == {
        "run": "run",
        "output": str(connected.target),
        "files": 30,
        "done": 30,
        "failed": 0,
        "skipped": 0,
    }
    assert connected.status().buckets == 4


def test_failed_files_fail_the_task_and_are_named_and_listed(
    connected: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    connected.settings["processor"] = "tests.processors:by_content"
    connected.files(5)
    connected.file("bad-1.txt", "raise one is bad")
    connected.file("bad-2.txt", "raise two is bad")
    connected.worker()
    task = run(connected)
    assert task.state == "failed"
    assert task.try_number == 1
    said = capfd.readouterr().out
    assert "2 of 7 files failed" in said
    assert re.search(r" 2  ValueError in processors.py:\d+ by_content, as bad-\d.txt: Val", said)
    file = connected.target / ".imece-failures" / "run.jsonl"
    assert str(file) in said
    assert listed(file) == ["bad-1.txt", "bad-2.txt"]

    # Fixed and cleared: only they are processed again.
    connected.file("bad-1.txt", "good")
    connected.file("bad-2.txt", "good")
    task = run(connected)
    assert task.state == "success"
    assert not file.exists()
    now = connected.status()
    assert (now.files, now.done, now.failed, now.skipped) == (7, 2, 0, 5)


def test_some_files_may_be_allowed_to_fail(connected: Workbench) -> None:
    connected.settings["processor"] = "tests.processors:by_content"
    connected.files(9)
    connected.file("bad.txt", "raise bad")
    connected.worker()
    task = run(connected, allow_failed="10%")
    assert task.state == "success"
    assert task.xcom_pull(task_ids="run")["failed"] == 1
    assert run(connected, allow_failed="0.01").state == "failed"


def test_a_run_with_too_many_failures_is_held_and_a_cleared_task_goes_on(
    connected: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    connected.settings["processor"] = "tests.processors:by_content"
    for number in range(40):
        connected.file(f"bad-{number}.txt", "raise bad")
    connected.worker()
    assert run(connected, max_failed="5").state == "failed"
    said = capfd.readouterr().out
    assert "run run is held: " in said
    assert "--max-failed allows 5" in said
    assert "ValueError in processors.py:" in said
    for number in range(40):
        connected.file(f"bad-{number}.txt", "good")
    assert run(connected, max_failed="5").state == "success"
    assert len(connected.outputs()) == 40


def test_another_dag_run_with_the_same_run_id_is_the_next_round(connected: Workbench) -> None:
    connected.settings["processor"] = "tests.processors:traced"
    names = connected.files(3)
    connected.worker()
    assert run(connected, run_id="nightly").state == "success"
    connected.file("new.txt")
    task = run(connected, run_id="nightly")
    assert task.state == "success"
    assert task.xcom_pull(task_ids="run") == {
        "run": "nightly",
        "output": str(connected.target),
        "files": 4,
        "done": 1,
        "failed": 0,
        "skipped": 3,
    }
    assert connected.begun() == dict.fromkeys([*names, "new.txt"], 1)
    assert connected.status("nightly").round == 2


def test_a_next_round_without_an_output_directory_processes_all_again(
    connected: Workbench,
) -> None:
    connected.settings["processor"] = "tests.processors:traced"
    names = connected.files(3)
    connected.worker()
    for _ in range(2):
        task = run(connected, output="-")
        assert task.state == "success"
        assert task.xcom_pull(task_ids="run")["done"] == 3
    assert connected.begun() == dict.fromkeys(names, 2)


def test_a_held_run_fails_the_task_with_its_reason_and_goes_on_when_that_is_cleared(
    connected: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    names = connected.files(3)
    held = Run(connected.redis, "imece", "run")
    reason = "the output directory is read-only"
    with ThreadPoolExecutor() as another:
        holding = another.submit(until, lambda: held.hold(reason), "the run")
        task = run(connected)
        assert holding.result()
    assert task.state == "failed"
    assert task.try_number == 1
    said = capfd.readouterr().out
    assert f"run run is held: {reason}. When that is fixed, clear this task" in said

    connected.worker()
    assert run(connected).state == "success"
    assert connected.outputs() == names


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"input": "/no/such"}, "the input directory /no/such does not exist"),
        ({"allow_failed": "many"}, "allow_failed 'many': takes a number of files, or a share"),
    ],
)
def test_what_no_retry_mends_fails_at_once_in_a_sentence(
    connected: Workbench, capfd: pytest.CaptureFixture[str], params: dict[str, str], said: str
) -> None:
    connected.files(1)
    task = run(connected, **params)
    assert task.state == "failed"
    assert said in capfd.readouterr().out


def test_a_redis_out_of_reach_is_said_with_the_connection_to_look_at(
    connected: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    connected.files(1)
    connected.server.stop()
    assert run(connected).state == "failed"
    said = capfd.readouterr().out
    assert "is out of reach" in said
    assert "the Airflow connection imece_redis" in said
    connected.server.start()


def test_a_connection_that_was_made_in_the_browser_works_in_dag_test(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in Airflow's database, not in the environment."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    monkeypatch.delenv("AIRFLOW_CONN_IMECE_REDIS", raising=False)
    made = Connection(
        conn_id="imece_redis", conn_type="redis", host=str(workbench.server.socket), extra="{}"
    )
    with create_session() as session:
        session.add(made)
    try:
        names = workbench.files(3)
        workbench.worker()
        assert run(workbench).state == "success"
        assert workbench.outputs() == names
    finally:
        with create_session() as session:
            session.delete(made)
