"""What Airflow sees of imece as a provider: its list, links, decorators, hook and settings."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from imece.run.store import Run
from imece_producer.airflow import ImeceHook, ImecePodOperator, ImeceRunLink, ImeceRunOperator
from imece_producer.airflow.deferring import VARIABLE
from tests.conftest import Workbench


def task(workbench: Workbench, **fields: Any) -> ImeceRunOperator:
    return ImeceRunOperator(
        task_id="run",
        run_id="a/run",
        input_dir=str(workbench.source),
        output_dir=str(workbench.target),
        poll_interval=0.05,
        **fields,
    )


def test_airflow_lists_imece_and_what_is_in_it() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.providers["imece"].version
    assert "imece_producer.airflow.links.ImeceRunLink" in manager.extra_links_class_names
    decorators = dict(manager.taskflow_decorators)
    assert decorators["imece"].__name__ == "imece_task"
    for named in manager.providers["imece"].data["operators"] + [
        *manager.providers["imece"].data["hooks"],
        *manager.providers["imece"].data["triggers"],
    ]:
        for module in named["python-modules"]:
            __import__(module)


def test_the_entry_point_imports_nothing_of_airflow() -> None:
    """All processes of Airflow load it, and stop if it fails: also without the extra `airflow`."""
    found = entry_points(group="apache_airflow_provider")
    [ours] = [one for one in found if one.value.startswith("imece_producer")]
    module = ours.value.partition(":")[0]
    code = f"import sys, {module}; sys.exit('airflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("extra", "link"),
    [
        ({}, ""),
        ({"run_url": "https://i.example/runs/{run}"}, "https://i.example/runs/a-run-"),
        (
            {"run_url": "https://g.example/d/1?var-run={run}"},
            "https://g.example/d/1?var-run=a-run-",
        ),
        ({"run_url": "javascript:alert(1)"}, ""),
    ],
)
def test_the_link_leads_where_the_connection_says(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, extra: dict[str, str], link: str
) -> None:
    connection = {"conn_type": "redis", "host": "r.example", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_IMECE_REDIS", json.dumps(connection))
    [button] = task(workbench).operator_extra_links
    assert isinstance(button, ImeceRunLink)
    found = button.get_link(task(workbench), ti_key=None)
    assert found.startswith(link)
    assert bool(found) == bool(link)
    assert button.get_link(task(workbench, redis_conn_id=None), ti_key=None) == ""
    assert button.get_link(task(workbench, redis_conn_id="no_such"), ti_key=None) == ""


def test_default_deferrable_counts_where_the_environment_sets_it(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pod(**fields: Any) -> bool:
        made = ImecePodOperator(task_id="pod", name="pod", image="image", **fields)
        return bool(made.deferrable)

    monkeypatch.delenv(VARIABLE, raising=False)
    assert task(workbench).deferrable is pod() is True
    monkeypatch.setenv(VARIABLE, "False")
    assert task(workbench).deferrable is pod() is False
    assert task(workbench, deferrable=True).deferrable is pod(deferrable=True) is True
    monkeypatch.setenv(VARIABLE, "True")
    assert task(workbench).deferrable is pod() is True


def test_a_task_that_may_not_defer_waits_where_it_is(connected: Workbench) -> None:
    connected.files(3)
    with pytest.raises(TaskDeferred):
        task(connected).execute({"outlet_events": {}})
    connected.worker()
    told = task(connected, deferrable=False).execute({"outlet_events": {}})
    assert (told["done"], told["failed"]) == (3, 0)


def test_a_task_that_waits_where_it_is_and_is_killed_cancels_its_run(
    connected: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected.files(3)
    waiting = task(connected, deferrable=False)
    run = Run(connected.redis, "imece", waiting._id)

    def killed(trigger: Any) -> None:
        attached = run.attach()
        assert attached is not None
        trigger.generation = attached  # as the trigger does
        waiting.on_kill()
        raise KeyboardInterrupt

    monkeypatch.setattr("imece_producer.airflow.run.wait_here", killed)
    with pytest.raises(KeyboardInterrupt):
        waiting.execute({})
    assert run.state() == "cancelled"


def test_the_hook_asks_about_runs_and_cancels_them(connected: Workbench) -> None:
    connected.settings["processor"] = "tests.processors:by_content"
    connected.settings["retries"] = "0"
    connected.file("bad.txt", "raise this one is bad")
    connected.enqueue("first")
    connected.enqueue("second", target=str(connected.folder / "second"))
    hook = ImeceHook()
    hook.cancel("second")
    assert hook.status("second")["state"] == "cancelled"
    connected.worker()
    connected.ended("first")
    [failure] = hook.failures("first")
    assert failure["file"] == "bad.txt"
    with hook.get_conn() as redis:
        assert redis.ping()
    with pytest.raises(AirflowFailException, match="there is no run third"):
        hook.status("third")
    with pytest.raises(AirflowFailException, match="there is no run first"):
        ImeceHook(run_queue="another").status("first")
