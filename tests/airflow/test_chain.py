"""Runs after each other, mapped runs, and what a task tells Airflow of its outputs."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.airflow.conftest import dag_named
from tests.conftest import Workbench

pytestmark = pytest.mark.usefixtures("airflow_database")


def run(name: str, workbench: Workbench, **params: Any) -> dict[tuple[str, int], Any]:
    """Runs a DAG of dags/chains.py once; its tasks, by id and map index."""
    conf = {"input": str(workbench.source), "output": str(workbench.target), **params}
    dag_run = dag_named("chains", name).test(run_conf=conf)
    return {(task.task_id, task.map_index): task for task in dag_run.get_task_instances()}


def events() -> list[tuple[str, dict[str, Any]]]:
    """All events of Assets: the Asset's address, and the extra."""
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.scalars(select(AssetEvent).order_by(AssetEvent.id))
        return [(event.uri, event.extra) for event in found]


def test_the_output_of_one_run_is_the_input_of_the_next(connected: Workbench) -> None:
    connected.files(3)
    connected.worker()
    second = connected.folder / "second"
    before = len(events())
    tasks = run("chain", connected, second=str(second))
    assert {task.state for task in tasks.values()} == {"success"}
    assert sorted(path.name for path in second.glob("*.again")) == [
        f"f-{number:04d}.again" for number in range(3)
    ]
    first = tasks["first", -1]
    assert first.xcom_pull(task_ids="first", key="done") == 3
    assert first.xcom_pull(task_ids="first")["output"] == str(connected.target)

    made = events()[before:]
    addresses = [uri for uri, _ in made]
    assert sorted(addresses) == sorted(
        ["chain", connected.target.as_uri(), second.as_uri()]
    )  # one for each output directory
    extras = dict(made)
    assert extras[second.as_uri()]["output"] == str(second)
    assert extras["chain"]["done"] == 3


def test_mapped_inputs_with_a_common_name_never_share_an_output(
    connected: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for number in range(3):
        folder = connected.folder / f"in-{number}"
        folder.mkdir()
        (folder / f"own-{number}.txt").write_text(folder.name)
        (folder / "same.txt").write_text(folder.name)
        folders.append(str(folder))
    connected.worker()
    tasks = run("mapped_folders", connected, inputs=folders)
    states = [tasks["run", index].state for index in range(3)]
    assert states.count("success") == 1
    won = states.index("success")
    assert (connected.target / "same.txt").read_text() == f"in-{won}"
    assert "the output of 'same.txt' would be 'same.txt' in" in capfd.readouterr().out

    for number in {0, 1, 2} - {won}:
        Path(folders[number], "same.txt").unlink()
    tasks = run("mapped_folders", connected, inputs=folders)
    assert {task.state for task in tasks.values()} == {"success"}
    assert connected.outputs() == ["own-0.txt", "own-1.txt", "own-2.txt", "same.txt"]


@pytest.mark.parametrize(
    ("empty", "states", "said"),
    [
        ("succeed", ("success", "success"), "0 files"),
        ("skip", ("skipped", "skipped"), "there are no files to process in"),
        ("fail", ("failed", "upstream_failed"), "there are no files to process in"),
        ("perhaps", ("failed", "upstream_failed"), "takes succeed, skip or fail"),
    ],
)
def test_a_run_without_files_does_as_it_is_told(
    connected: Workbench,
    capfd: pytest.CaptureFixture[str],
    empty: str,
    states: tuple[str, str],
    said: str,
) -> None:
    connected.source.mkdir(exist_ok=True)
    connected.target.mkdir(exist_ok=True)
    (connected.source / ".hidden").touch()
    tasks = run("chain", connected, second=str(connected.folder / "second"), empty=empty)
    assert (tasks["first", -1].state, tasks["second", -1].state) == states
    assert said in capfd.readouterr().out


def test_a_decorated_function_says_what_to_process(
    connected: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    connected.files(2)
    connected.worker()
    second = connected.folder / "second"
    tasks = run("decorated", connected, second=str(second))
    assert tasks["run", -1].state == "success"
    assert tasks["folder", -1].state == "success"
    assert connected.outputs() == ["f-0000.made", "f-0001.made"]
    assert sorted(path.name for path in second.glob("f-*")) == ["f-0000.made", "f-0001.made"]
    assert tasks["run", -1].xcom_pull(task_ids="run", key="run") == "decorated"
    assert tasks["wrong", -1].state == "failed"
    assert "wrong returned run_id: give run_id to @task.imece" in capfd.readouterr().out
