"""No output of another input is taken as current: such a run is refused, with both names."""

import threading
from pathlib import Path

import pytest

from imece.errors import ImeceError, RunError
from imece.run.store import Run
from tests.conftest import Workbench


@pytest.fixture
def other(workbench: Workbench) -> Path:
    """A second input directory with one of the names of the first, and one of its own."""
    workbench.file("same.txt", "of the first")
    folder = workbench.folder / "other"
    folder.mkdir()
    (folder / "same.txt").write_text("of the second")
    (folder / "own.txt").write_text("of the second")
    return folder


def enqueue_other(workbench: Workbench, other: Path, run_id: str = "other", **options: bool) -> str:
    first, workbench.source = workbench.source, other
    try:
        return workbench.enqueue(run_id, **options).how
    finally:
        workbench.source = first


def test_an_output_of_an_ended_run_of_another_input_is_refused_not_skipped(
    workbench: Workbench, other: Path
) -> None:
    workbench.worker()
    workbench.enqueue()
    workbench.ended()
    with pytest.raises(RunError, match=r"would be 'same\.txt' in .*, where run run has made that"):
        enqueue_other(workbench, other)
    assert Run(workbench.redis, "imece", "other").state() is None
    assert workbench.outputs() == ["same.txt"]


def test_with_overwrite_it_is_made_again_of_this_input(workbench: Workbench, other: Path) -> None:
    workbench.worker()
    workbench.enqueue()
    workbench.ended()
    assert enqueue_other(workbench, other, overwrite=True) == "enqueued"
    assert workbench.ended("other").done == 2
    assert (workbench.target / "same.txt").read_text() == "of the second"
    # Now it is the other's, and the first run does not take it for its own.
    with pytest.raises(RunError, match="where run other has made that file"):
        workbench.enqueue()


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_of_a_run_that_is_on_is_refused(
    workbench: Workbench, other: Path, overwrite: bool
) -> None:
    workbench.enqueue()
    with pytest.raises(RunError, match="where run run makes that file"):
        enqueue_other(workbench, other, overwrite=overwrite)


def test_inputs_whose_names_differ_go_into_one_directory(workbench: Workbench, other: Path) -> None:
    (other / "same.txt").unlink()
    workbench.worker()
    workbench.enqueue()
    assert enqueue_other(workbench, other) == "enqueued"
    assert workbench.ended().done == workbench.ended("other").done == 1
    assert workbench.outputs() == ["own.txt", "same.txt"]
    assert enqueue_other(workbench, other) == "enqueued"
    assert workbench.ended("other").skipped == 1


def test_another_suffix_counts_as_another_input(workbench: Workbench) -> None:
    workbench.file("one.json", "{}")
    workbench.file("two.txt", "2")
    workbench.enqueue("plain")
    assert workbench.enqueue("suffix", suffix=".out").how == "enqueued"
    workbench.file("one.txt", "1")
    with pytest.raises(RunError, match=r"the output of 'one\.txt' would be 'one\.json'"):
        workbench.enqueue("clash", suffix=".json", include=["*.txt"])


def test_another_run_of_the_same_input_skips_what_is_current(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.worker()
    workbench.enqueue("first")
    workbench.ended("first")
    workbench.enqueue("second")
    assert workbench.ended("second").skipped == 3


def test_the_same_outputs_of_the_same_input_are_made_by_one_run_at_a_time(
    workbench: Workbench,
) -> None:
    workbench.files(3)
    workbench.enqueue("first")
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"run first is on, and makes 'f-000.\.txt'") as refused:
            workbench.enqueue("second", overwrite=overwrite)
    assert "`imece cancel first`" in str(refused.value)
    assert Run(workbench.redis, "imece", "second").state() is None
    assert workbench.enqueue("first").how == "attached"
    workbench.run("first").cancel(60)
    assert workbench.enqueue("second").how == "enqueued"
    with pytest.raises(RunError, match="run second is on"):
        workbench.enqueue("first")
    workbench.worker()
    assert workbench.ended("second").done == 3


def test_other_files_of_the_same_input_are_processed_at_the_same_time(workbench: Workbench) -> None:
    workbench.file("a.txt")
    workbench.file("a.csv")
    workbench.enqueue("texts", include=["*.txt"])
    assert workbench.enqueue("tables", include=["*.csv"]).how == "enqueued"
    workbench.file("b.txt")
    workbench.file("b.csv")
    workbench.enqueue("text", include=["b.txt"], suffix=".json")
    with pytest.raises(RunError, match=r"the output of 'b\.csv' would be 'b\.json'"):
        workbench.enqueue("table", include=["b.csv"], suffix=".json")


def test_a_held_run_gives_way_and_is_refused_when_it_is_to_go_on(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.enqueue("first")
    workbench.run("first").hold("for a reason")
    assert workbench.enqueue("second").how == "enqueued"
    answer = workbench.imece("resume", "first")
    assert answer.returncode == 2
    assert "run second is on" in answer.stderr


def test_a_run_that_was_deleted_is_not_compared_with(workbench: Workbench, other: Path) -> None:
    workbench.worker()
    workbench.enqueue()
    workbench.ended()
    Run(workbench.redis, "imece", "run").delete()
    assert enqueue_other(workbench, other) == "enqueued"


def test_of_several_enqueued_at_one_moment_one_wins(workbench: Workbench, other: Path) -> None:
    """Each has looked at the others before any is committed: the commit sees to it."""
    folders = [workbench.folder / f"in-{number}" for number in range(6)]
    for folder in folders:
        folder.mkdir()
        (folder / "same.txt").write_text(folder.name)
    start, results = threading.Barrier(len(folders)), []

    def produce(folder: Path) -> None:
        from imece_producer.enqueue import Producer
        from imece_producer.request import list_files, parameters_of

        settings = workbench.load()
        parameters = parameters_of(
            settings, folder, str(workbench.target), suffix=None, overwrite=True, from_file=None,
            include=None, exclude=None, hidden=False, buckets=None, files_per_job=None,
            retries=None, max_failed=None, timeout=None,
        )  # fmt: skip

        def wait_and_list() -> object:
            start.wait(20)
            return list_files(parameters, None, False)

        try:
            made = Producer(workbench.redis, settings).enqueue(
                folder.name,
                parameters,
                wait_and_list,  # type: ignore[arg-type]
            )
            results.append(made.how)
        except ImeceError as error:
            results.append(str(error))

    threads = [threading.Thread(target=produce, args=[folder]) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("enqueued") == 1, results
    refused = [result for result in results if "makes that file" in result]
    assert len(refused) == len(folders) - 1
