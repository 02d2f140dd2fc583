"""An Airflow of our own: its home, its database, and Connections to the servers of the tests."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Workbench

DAGS = ROOT / "dags"
TEST_DAGS = ROOT / "tests" / "airflow" / "dags"

# Airflow reads its settings when it is first imported.
HOME = tempfile.TemporaryDirectory(prefix="imece-airflow-")
EXAMPLES = Path(HOME.name) / "examples"
EXAMPLES.mkdir()
os.environ |= {
    "AIRFLOW_HOME": HOME.name,
    "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
    "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(
        [
            {
                "name": name,
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(folder)},
            }
            for name, folder in {"imece": DAGS, "tests": TEST_DAGS, "docs": EXAMPLES}.items()
        ]
    ),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
}


@pytest.fixture(scope="session")
def airflow_database() -> None:
    """A database for `dag.test()`, which needs one (SQLite)."""
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True
    )


@pytest.fixture(autouse=True)
def no_shortest_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dag.test()` has no scheduler that a trigger should give time to."""
    from imece_producer.airflow import trigger

    monkeypatch.setattr(trigger, "SHORTEST_WAIT", 0.0)


@pytest.fixture
def connected(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workbench]:
    """A workbench that Airflow knows by the connection imece_redis."""
    connection = {"conn_type": "redis", "host": str(workbench.server.socket)}
    monkeypatch.setenv("AIRFLOW_CONN_IMECE_REDIS", json.dumps(connection))
    monkeypatch.setenv("IMECE_RETRIES", workbench.settings["retries"])
    monkeypatch.setenv("IMECE_RETRY_PAUSE", workbench.settings["retry_pause"])
    yield workbench


def dag_named(name: str, dag_id: str = "") -> Any:
    """A DAG of ours, or of the tests, by its file and its id, if that is another. No task is tried
    again, which would take minutes."""
    from airflow.dag_processing.dagbag import DagBag

    folder = TEST_DAGS if (TEST_DAGS / f"{name}.py").exists() else DAGS
    bag = DagBag(dag_folder=str(folder / f"{name}.py"))
    assert bag.import_errors == {}
    dag = bag.dags[dag_id or name]
    for task in dag.tasks:
        if not task.is_mapped:
            task.retries = 0
    return dag


def rendered(
    dag: Any, task_id: str, params: dict[str, Any], mapped: dict[str, Any] | None = None
) -> Any:
    """A task with its fields filled from params, and from what it is mapped over."""
    task = dag.get_task(task_id)
    if mapped is not None:
        task = task.unmap(mapped)
    task.render_template_fields({"params": params}, jinja_env=dag.get_template_env())
    return task


def listed(file: Path) -> list[str]:
    """The files in a list of failures."""
    return [json.loads(line)["file"] for line in file.read_text().splitlines()]


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection imece_kubernetes, to nowhere: only the pods' specs are looked at."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "none",
        "clusters": [{"name": "none", "cluster": {"server": "https://cluster.invalid"}}],
        "users": [{"name": "none", "user": {"token": "none"}}],
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
    }
    extra = {"namespace": "imece", "kube_config": json.dumps(config)}
    connection = {"conn_type": "kubernetes", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_IMECE_KUBERNETES", json.dumps(connection))
