"""The trigger alone, in an event loop of the test's own."""

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.triggers.base import TriggerEvent

from imece.run.store import Run
from imece_producer.airflow import ImeceRunTrigger
from imece_producer.airflow.trigger import Quiet, Report
from tests.api_server import ApiServer, pod
from tests.conftest import Workbench, until


@pytest.fixture(autouse=True)
def environment(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is the one the environment names."""
    monkeypatch.setenv("IMECE_REDIS_URL", workbench.server.url)


def trigger(**arguments: Any) -> ImeceRunTrigger:
    made = ImeceRunTrigger(run_id="run", queue="imece", poll_interval=0.05, **arguments)
    made._log = logging.getLogger("imece.test")  # one that caplog hears
    return made


async def first(waiting: ImeceRunTrigger) -> Any:
    event = await anext(aiter(waiting.run()))
    assert isinstance(event, TriggerEvent)
    return event.payload


def kill_once(waiting: ImeceRunTrigger, ready: Callable[[], bool]) -> None:
    """Does what the triggerer does when somebody acts on the task, as soon as `ready`."""

    async def act() -> None:
        task = asyncio.create_task(first(waiting))
        while not ready():
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await waiting.on_kill()

    asyncio.run(asyncio.wait_for(act(), 20))


def within(what: Awaitable[Any], seconds: float = 20) -> Any:
    async def wait() -> Any:
        return await asyncio.wait_for(what, seconds)

    return asyncio.run(wait())


def test_it_comes_back_as_it_was_whatever_another_version_says(workbench: Workbench) -> None:
    path, arguments = trigger(generation="7").serialize()
    assert path == "imece_producer.airflow.trigger.ImeceRunTrigger"
    again = ImeceRunTrigger(**arguments, something_new=1)
    assert again.serialize() == (path, arguments)
    assert arguments["generation"] == "7"


def test_one_that_an_older_version_has_stored_is_loaded_and_waits(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue()
    workbench.worker()
    stored: dict[str, Any] = {
        "run_id": "run",
        "queue": "imece",
        "redis_conn_id": None,
        "generation": "1",
        "cancel_grace": 10.0,
        "poll_interval": 0.05,
    }
    loaded = ImeceRunTrigger(**stored)
    del stored["cancel_grace"]
    assert loaded.serialize()[1] == {
        **stored,
        "kubernetes_conn_id": None,
        "shortest_wait": 0.0,
    }
    assert within(first(loaded)) == {"run": "run", "state": "done"}


@pytest.mark.parametrize("state", ["done", "failed", "cancelled", "held"])
def test_it_ends_with_the_run(workbench: Workbench, state: str) -> None:
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.settings["retries"] = "0"
    workbench.file("one", "raise bad" if state == "failed" else "good")
    workbench.enqueue()
    if state == "cancelled":
        Run(workbench.redis, "imece", "run").cancel(600)
    elif state == "held":
        assert Run(workbench.redis, "imece", "run").hold("the output directory is read-only")
    else:
        workbench.worker()
    assert within(first(trigger())) == {"run": "run", "state": state}


def test_it_gives_the_scheduler_time_to_hear_that_the_task_was_deferred(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imece_producer.airflow.trigger.SHORTEST_WAIT", 1.0)
    workbench.files(1)
    workbench.enqueue()
    Run(workbench.redis, "imece", "run").cancel(600)
    began = time.monotonic()
    assert within(first(trigger())) == {"run": "run", "state": "cancelled"}
    assert time.monotonic() - began >= 1.0
    began = time.monotonic()
    within(first(trigger(shortest_wait=1.5)))
    assert time.monotonic() - began >= 1.5


def test_a_run_that_is_not_there_is_an_error_not_an_exception(workbench: Workbench) -> None:
    assert "there is no run run" in within(first(trigger()))["error"]


def test_it_sits_out_an_outage(workbench: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    workbench.files(1)
    workbench.enqueue()

    async def act() -> Any:
        task = asyncio.create_task(first(trigger()))
        run = Run(workbench.redis, "imece", "run")
        while run.snapshot().generation == "1":
            await asyncio.sleep(0.02)
        workbench.server.stop()
        while "out of reach" not in caplog.text:
            await asyncio.sleep(0.02)
        workbench.server.start()
        workbench.worker()
        return await task

    with caplog.at_level("INFO"):
        assert within(act()) == {"run": "run", "state": "done"}
    assert "Redis is back" in caplog.text


def test_a_wrong_password_is_not_waited_for(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench.redis.config_set("requirepass", "right")
    monkeypatch.setenv("IMECE_REDIS_PASSWORD", "wrong")
    event = within(first(trigger()))
    assert "does not accept the user or password" in event["error"]
    assert not event["may_pass"]


def test_a_connection_that_is_missing_is_not_waited_for(workbench: Workbench) -> None:
    event = within(first(trigger(redis_conn_id="nobody")))
    assert "there is no Airflow connection nobody" in event["error"]
    assert not event["may_pass"]


async def heard(waiting: ImeceRunTrigger, words: str, caplog: pytest.LogCaptureFixture) -> str:
    """Waits until the log has some words; all of it."""
    task = asyncio.create_task(first(waiting))
    while words not in caplog.text:
        assert not task.done()
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait({task})
    return caplog.text


def test_the_log_says_what_to_look_at_when_no_worker_comes(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("imece_producer.airflow.trigger.QUIET", 0.1)
    workbench.files(1)
    workbench.enqueue()
    with caplog.at_level("INFO"):
        said = within(heard(trigger(kubernetes_conn_id="nobody"), "no worker has had", caplog))
    assert "no worker has had a bucket job of the queue imece for" in said
    assert "workers need this Redis, IMECE_QUEUE=imece, and a processor that loads" in said
    assert "name it in the Airflow connection nobody" in said


def test_the_log_says_what_keeps_workers_from_coming_a_wrong_processor_too(
    workbench: Workbench,
    cluster: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("imece_producer.airflow.trigger.QUIET", 0.1)
    monkeypatch.delenv("KUBECONFIG")
    extra = {"kube_config": (tmp_path / "kubeconfig").read_text()}
    connection = json.dumps({"conn_type": "kubernetes", "extra": extra})
    monkeypatch.setenv("AIRFLOW_CONN_IMECE_KUBERNETES", connection)
    crashed = {"terminated": {"exitCode": 2}}
    waits = {"waiting": {"reason": "CrashLoopBackOff"}}
    container = {"name": "worker", "image": "i", "state": waits, "lastState": crashed}
    cluster.add_pods(pod("one", containerStatuses=[container]))
    cluster.logs["one"] = "imece-worker: IMECE_PROCESSOR a:b: there is no module a\n"
    workbench.files(1)
    workbench.enqueue()
    waiting = trigger(kubernetes_conn_id="imece_kubernetes")
    with caplog.at_level("INFO"):
        said = within(heard(waiting, "no worker has had", caplog), 40)
    assert "0 workers ready, 0 wanted, limit 20" in said
    assert "IMECE_PROCESSOR a:b: there is no module a" in said


def test_a_run_with_a_job_in_hand_is_not_called_quiet(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imece_producer.airflow.trigger.QUIET", 0.0)
    quiet = Quiet()
    workbench.settings["processor"] = "tests.processors:by_content"
    go = workbench.folder / "go"
    workbench.files(1, f"wait-for {go}\n".encode())
    workbench.enqueue()
    assert quiet.lasted(workbench.status()) is not None
    workbench.worker()
    until(lambda: workbench.status().backlog.in_flight, "a job in hand")
    monkeypatch.setattr("imece_producer.airflow.trigger.QUIET", 60.0)
    assert quiet.lasted(workbench.status()) is None
    go.touch()
    assert quiet.lasted(workbench.ended()) is None


def test_a_killed_task_s_run_is_cancelled_at_once_without_any_worker(workbench: Workbench) -> None:
    workbench.files(400)
    workbench.enqueue(files_per_job=1)
    run = Run(workbench.redis, "imece", "run")
    kill_once(trigger(), lambda: run.snapshot().generation == "2")
    assert run.state() == "cancelled"
    assert workbench.status().backlog.pending == 0  # an autoscaler has nothing to count


def test_a_killed_task_s_run_goes_on_and_begins_no_file_a_second_time(
    workbench: Workbench,
) -> None:
    """The cancel and the next round both come while the workers have files in hand."""
    workbench.settings["processor"] = "tests.processors:by_content_traced"
    go = workbench.folder / "go"
    names = workbench.files(6, f"wait-for {go}\n".encode())
    workbench.enqueue(buckets=3)
    for _ in range(2):
        workbench.worker()
    until(lambda: len(workbench.begun()) == 2, "files in hand")
    run = Run(workbench.redis, "imece", "run")
    kill_once(trigger(), lambda: run.snapshot().generation == "2")
    assert run.state() == "cancelled"
    assert workbench.enqueue(buckets=3).how == "resumed"
    assert not set(names).intersection(workbench.outputs())
    go.touch()
    assert within(first(trigger())) == {"run": "run", "state": "done"}
    assert workbench.begun() == dict.fromkeys(names, 1)
    assert workbench.outputs() == names


def test_a_late_kill_does_not_touch_a_run_another_has_attached_to(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue()
    run = Run(workbench.redis, "imece", "run")
    kill_once(trigger(), lambda: run.snapshot().generation == "2" and run.attach() == "3")
    assert run.state() == "queued"


def test_a_late_kill_does_not_touch_the_next_round_of_a_cancelled_run(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue()
    run = Run(workbench.redis, "imece", "run")

    def is_in_its_next_round() -> bool:
        if run.snapshot().generation != "2":
            return False
        run.cancel(600)
        return workbench.enqueue().how == "resumed"

    kill_once(trigger(), is_in_its_next_round)
    assert run.state() == "queued"
    assert workbench.status().round == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_kill_is_lost_wherever_it_meets_the_trigger(workbench: Workbench) -> None:
    """Under Python 3.11 redis-py's awaits swallow a cancel at times; and a kill that comes while
    the trigger attaches must cancel the generation that it attaches to."""
    workbench.files(1)
    run = Run(workbench.redis, "imece", "run")
    dice = random.Random(9)
    user_action = "who acted is in the cancel's message"

    async def kill() -> Any:
        waiting = trigger(generation=run.attach())
        waiting.poll_interval = 0.0
        task = asyncio.create_task(first(waiting))
        for _ in range(dice.randrange(150)):
            await asyncio.sleep(0)
        task.cancel(user_action)
        await asyncio.wait({task}, timeout=2)
        if not task.cancelled():
            while not task.done():
                task.cancel()
                await asyncio.sleep(0.01)
            return ("it goes on",)
        try:
            await task
        except asyncio.CancelledError as error:
            await waiting.on_kill()
            return error.args

    for number in range(300):
        workbench.enqueue()
        said = asyncio.run(kill())
        assert (number, said, run.state()) == (number, (user_action,), "cancelled")


def test_progress_is_told_on_change_and_not_too_often(workbench: Workbench) -> None:
    workbench.files(1)
    workbench.enqueue()
    said: list[str] = []
    report = Report(lambda form, text: said.append(text))
    report.progress(workbench.status())
    report.progress(workbench.status())
    workbench.worker()
    last = workbench.ended()
    report.progress(last)
    assert [line.partition(":")[0] for line in said] == ["queued", "done"]
