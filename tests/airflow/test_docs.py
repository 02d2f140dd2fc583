"""The DAGs of the docs are DAGs, and the patterns do what the page says."""

from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag

from tests.airflow.conftest import EXAMPLES
from tests.conftest import Workbench
from tests.pages import DOCS, Block, blocks

PAGES = [
    *sorted((DOCS / "how-to").glob("airflow*.md")),
    DOCS / "coming-from" / "airflow-mapping.md",
]
CODE = [
    pytest.param(block, id=f"{page.name}:{block.line}")
    for page in PAGES
    for block in blocks(page)
    if block.language == "python"
]


def bag_of(text: str, folder: Path) -> Any:
    file = folder / "from_the_docs.py"
    file.write_text(text)
    return DagBag(dag_folder=str(file))


@pytest.mark.parametrize("block", CODE)
def test_each_example_is_a_dag_without_errors_or_warnings(block: Block, tmp_path: Path) -> None:
    bag = bag_of(block.text, tmp_path)
    assert bag.import_errors == {}
    assert bag.captured_warnings == {}
    assert bool(bag.dags) == (block.title is None)


def example(dag_id: str, workbench: Workbench) -> Any:
    """A DAG of the page, with its directories below the test's."""
    [block] = [
        block
        for block in blocks(DOCS / "how-to" / "airflow-dags.md")
        if f'DAG("{dag_id}"' in block.text or f'"{dag_id}",\n' in block.text
    ]
    text = block.text.replace("/data/in", str(workbench.source))
    text = text.replace("/data/", f"{workbench.folder}/")
    for file in EXAMPLES.glob("*.py"):
        file.unlink()
    dag = bag_of(text, EXAMPLES).dags[dag_id]
    for task in dag.tasks:
        task.retries = 0
    return dag


@pytest.mark.usefixtures("airflow_database")
def test_the_hook_and_the_check_run(connected: Workbench) -> None:
    connected.settings["processor"] = "tests.processors:by_content"
    connected.files(100, b"text")
    connected.file("bad.txt", "raise this is bad")
    connected.worker()
    assert example("with_a_check", connected).test().state == "success"


@pytest.mark.usefixtures("airflow_database")
def test_a_callback_is_told_which_files_failed(
    connected: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    connected.settings["processor"] = "tests.processors:by_content"
    connected.file("bad.txt", "raise this is bad")
    connected.worker()
    assert example("with_alarms", connected).test().state == "failed"
    said = capfd.readouterr().out
    assert "run failed: 1 of 1 file failed" in said
    assert "bad.txt" in said


@pytest.mark.usefixtures("airflow_database")
def test_parameters_of_a_dag_reach_the_processor(
    connected: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    [module] = [block for block in blocks(DOCS / "how-to" / "airflow-dags.md") if block.title]
    (connected.folder / "scaled.py").write_text(module.text)
    connected.file("deep/numbers.txt", "1\n2.5\n")
    path = f"{connected.folder}:{Path(__file__).parents[2]}"
    monkeypatch.setenv("PYTHONPATH", path)
    connected.settings["processor"] = "scaled:scale"
    connected.worker(fresh=True)
    assert example("scaled", connected).test(run_conf={"factor": 3.0}).state == "success"
    output = connected.folder / "out" / "scaled-3.0" / "deep" / "numbers.txt"
    assert output.read_text() == "3\n7.5\n"
