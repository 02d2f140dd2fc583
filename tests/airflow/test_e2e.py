"""A run in a whole Airflow: what its users do to it, and what dies under it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis

from imece.run.store import Run, recent
from imece_producer.local.server import Server
from tests.airflow.conftest import DAGS, TEST_DAGS
from tests.airflow.deployment import Deployment
from tests.conftest import ROOT, Workbench, until

pytestmark = [pytest.mark.airflow_e2e, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(scope="module")
def airflow(store: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    extra = {"run_url": "https://imece.example/{run}"}
    connection = {"conn_type": "redis", "host": str(store.socket), "extra": extra}
    made = Deployment(
        tmp_path_factory.mktemp("airflow"),
        {"imece": DAGS, "tests": TEST_DAGS},
        AIRFLOW_CONN_IMECE_REDIS=json.dumps(connection),
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def bench(store: Server, tmp_path: Path) -> Iterator[Workbench]:
    """A workbench whose processor keeps a trace of each file; the server is Airflow's."""
    client = Redis(unix_socket_path=str(store.socket))
    made = Workbench(store, client, tmp_path)
    made.settings["processor"] = "tests.processors:traced"
    yield made
    made.close()
    client.flushall()
    client.close()


def conf(bench: Workbench, **more: Any) -> dict[str, Any]:
    return {"input": str(bench.source), "output": str(bench.target), **more}


def each_file_was_done_once(bench: Workbench, names: list[str]) -> bool:
    assert bench.begun() == dict.fromkeys(names, 1)
    assert bench.outputs() == names
    return True


def generation(bench: Workbench, run_id: str) -> int:
    return int(Run(bench.redis, "imece", run_id).snapshot().generation or 0)


def waited_for(bench: Workbench, run_id: str, done: int = 20) -> None:
    """Waits until the triggerer has taken over (the task attaches, then the trigger) and so many
    files are done. Before that Airflow tells nobody of a task that is killed."""
    until(lambda: generation(bench, run_id) >= 3, "the trigger", 60)
    until(lambda: len(bench.finished()) >= done, f"{done} files", 60)


def test_a_form_s_run_ends_with_an_asset_event_and_the_dag_that_waits_for_it(
    airflow: Deployment, bench: Workbench
) -> None:
    names = bench.files(400)
    bench.worker()
    run = airflow.trigger("process_files", conf(bench, include=["*.txt"], buckets=16))
    assert run.ended() == "success", run.log()
    assert each_file_was_done_once(bench, names)
    log = run.log()
    assert "left of 400" in log
    assert "running:" in log
    events = airflow.ask("GET", "/api/v2/assets/events")["asset_events"]
    [mine] = [event for event in events if event["source_run_id"] == run.id]
    assert (mine["extra"]["done"], mine["extra"]["files"]) == (400, 400)
    assert mine["uri"] == bench.target.as_uri()
    links = airflow.ask("GET", f"{run.path}/taskInstances/run/links")["extra_links"]
    assert links == {"imece run": f"https://imece.example/{mine['extra']['run']}"}

    def followers() -> Any:
        return airflow.ask("GET", "/api/v2/dags/follow_up/dagRuns")["dag_runs"]

    until(lambda: [one for one in followers() if one["state"] == "success"], "the follower", 60)


def test_a_task_cleared_while_it_waits_goes_on_and_nothing_is_done_twice(
    airflow: Deployment, bench: Workbench
) -> None:
    names = bench.files(900)
    bench.worker()
    run = airflow.trigger("one_run", conf(bench, run_id="cleared"))
    run.reaches("deferred")
    waited_for(bench, "cleared")
    before = generation(bench, "cleared")
    run.clear()
    until(lambda: generation(bench, "cleared") > before, "the next try", 60)
    assert run.ended() == "success", run.log(attempt=2)
    assert each_file_was_done_once(bench, names)
    assert run.task()["try_number"] == 2


def test_a_task_cleared_with_long_files_in_hand_begins_none_a_second_time(
    airflow: Deployment, bench: Workbench
) -> None:
    bench.settings["processor"] = "tests.processors:by_content_traced"
    go = bench.folder / "go"
    names = bench.files(6, f"wait-for {go}\n".encode())
    for _ in range(2):
        bench.worker()
    run = airflow.trigger("one_run", conf(bench, run_id="in_hand", buckets=3))
    run.reaches("deferred")
    waited_for(bench, "in_hand", done=0)
    until(lambda: len(bench.begun()) == 2, "files in hand", 60)
    before = generation(bench, "in_hand")
    run.clear()
    # The cancel, the next round of the next try, its task and its trigger.
    until(lambda: generation(bench, "in_hand") >= before + 2, "the next try", 60)
    assert len(bench.begun()) == 2
    assert not set(names).intersection(bench.outputs())
    go.touch()
    assert run.ended() == "success", run.log(attempt=2)
    assert each_file_was_done_once(bench, names)
    assert run.task()["try_number"] == 2


def test_the_next_dag_run_of_the_same_run_id_takes_the_new_files_alone(
    airflow: Deployment, bench: Workbench
) -> None:
    names = bench.files(10)
    bench.worker()
    first = airflow.trigger("one_run", conf(bench, run_id="nightly"))
    assert first.ended() == "success", first.log()
    bench.file("new.txt")
    second = airflow.trigger("one_run", conf(bench, run_id="nightly"))
    assert second.ended() == "success", second.log()
    assert each_file_was_done_once(bench, [*names, "new.txt"])
    now = bench.status("nightly")
    assert (now.round, now.files, now.done, now.skipped) == (2, 11, 1, 10)


def test_marking_a_task_failed_cancels_its_run_within_seconds(
    airflow: Deployment, bench: Workbench
) -> None:
    names = bench.files(3000)
    bench.worker()
    run = airflow.trigger("one_run", conf(bench, run_id="marked"))
    run.reaches("deferred")
    waited_for(bench, "marked")
    began = time.monotonic()
    run.mark("failed")
    until(lambda: Run(bench.redis, "imece", "marked").state() == "cancelled", "the cancel", 40)
    assert time.monotonic() - began < 20
    until(lambda: bench.status("marked").backlog.in_flight == 0, "the worker to hand back")
    done = len(bench.finished())
    assert 0 < done < 3000
    # Cleared, it goes on where it was.
    bench.worker()
    run.clear()
    until(lambda: len(bench.finished()) > done, "more files", 60)
    run.mark("failed")
    assert set(bench.begun().values()) == {1}
    assert set(bench.begun()) <= set(names)


def test_a_task_killed_after_it_enqueued_is_tried_again_and_attaches(
    airflow: Deployment, bench: Workbench
) -> None:
    names = bench.files(100)
    bench.worker()
    run = airflow.trigger("dies_once", conf(bench))
    assert run.ended() == "success", run.log(attempt=2)
    assert run.task()["try_number"] == 2
    assert each_file_was_done_once(bench, names)
    assert len(recent(bench.redis, "imece")) == 1


def test_mapped_tasks_whose_runs_are_done_at_once_are_green_at_the_first_try(
    airflow: Deployment, bench: Workbench
) -> None:
    """A task that comes back before the scheduler has heard that it was deferred is marked as
    failed ("reported success, state is queued")."""
    names = bench.files(3)
    bench.worker()
    bench.worker()
    run = airflow.trigger("mapped", conf(bench))
    assert run.ended(150) == "success"
    found = airflow.ask("GET", f"{run.path}/taskInstances")["task_instances"]
    assert [(one["state"], one["try_number"]) for one in found] == [("success", 1)] * 10
    assert bench.outputs() == names


def test_a_killed_triggerer_s_runs_go_on_under_the_next(
    airflow: Deployment, bench: Workbench
) -> None:
    names = bench.files(300)
    bench.worker()
    run = airflow.trigger("one_run", conf(bench, run_id="orphan"))
    run.reaches("deferred")
    waited_for(bench, "orphan")
    airflow.kill("triggerer")
    airflow.start_part("triggerer")
    assert run.ended(120) == "success", run.log()
    assert each_file_was_done_once(bench, names)
    assert run.task()["try_number"] == 1


def test_a_dag_run_that_times_out_takes_its_run_with_it(
    airflow: Deployment, bench: Workbench
) -> None:
    bench.files(3000)
    bench.worker()
    run = airflow.trigger("times_out", conf(bench, run_id="late"))
    assert run.ended() == "failed"
    until(lambda: Run(bench.redis, "imece", "late").state() == "cancelled", "the cancel", 40)
    assert set(bench.begun().values()) == {1}


@pytest.mark.parametrize("part", ["scheduler", "dag-processor", "triggerer"])
def test_the_health_checks_of_compose_find_each_part_alive(airflow: Deployment, part: str) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    [_, _, *arguments] = services[f"airflow-{part}"]["healthcheck"]["test"]
    code = [one.replace("http://airflow-api-server:8080", airflow.address) for one in arguments]

    def is_healthy() -> bool:
        return subprocess.run([sys.executable, *code], check=False).returncode == 0

    until(is_healthy, f"{part} to be healthy", 60)
