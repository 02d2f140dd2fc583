"""The DAG files: they import without a word, run, and ask for pods as they should."""

from importlib import metadata
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import AirflowFailException
from packaging.requirements import Requirement

from imece_producer.airflow import bucket_pods
from tests.airflow.conftest import DAGS, dag_named, rendered
from tests.conftest import Workbench

NAMES = {"process_files", "static_buckets", "build_worker_image"}


def test_all_import_with_no_error_and_no_warning() -> None:
    bag = DagBag(dag_folder=str(DAGS))
    assert bag.import_errors == {}
    assert bag.captured_warnings == {}
    assert set(bag.dags) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_explains_itself_and_each_param(name: str) -> None:
    dag = dag_named(name)
    assert dag.doc_md
    assert dag.description
    for param in dag.params.values():
        assert param.schema["title"]


def test_the_extra_installs_together_with_no_conflict() -> None:
    """What each installed package asks of the others is there."""
    wanted = [("imece", line) for line in metadata.requires("imece") or []]
    extras = {"extra": "airflow"}
    for installed in metadata.distributions():
        wanted += [(installed.name, line) for line in installed.requires or []]
    conflicts = []
    for who, line in wanted:
        one = Requirement(line)
        if one.marker is not None and not one.marker.evaluate(extras if who == "imece" else None):
            continue
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            version = ""
        if version not in one.specifier:
            conflicts.append(f"{who} wants {one}, there is {version or 'none'}")
    assert conflicts == []
    for name in ("cncf-kubernetes", "redis", "standard"):
        assert metadata.version(f"apache-airflow-providers-{name}")
    assert metadata.version("apache-airflow") == "3.3.2"


@pytest.mark.usefixtures("airflow_database")
def test_process_files_runs_from_preflight_to_the_figures(
    connected: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    connected.files(12)
    connected.file("left-out.csv")
    connected.file("f-not-this.txt")
    connected.file("g/.hidden.txt")
    connected.worker(queue="forms", processor="tests.processors_with_parameters:copy")
    dag_run = dag_named("process_files").test(
        run_conf={
            "input": str(connected.source),
            "output": str(connected.target),
            "include": ["f-*", "/g/**"],
            "exclude": ["f-not-*"],
            "hidden": True,
            "timeout": 30,
            "queue": "forms",
            "suffix": ".out",
            "set": ["size=32", "mode=fast"],
            "buckets": 3,
            "retries": 0,
        }
    )
    said = capfd.readouterr().out
    assert dag_run.state == "success", said
    tasks = {task.task_id: task for task in dag_run.get_task_instances()}
    assert {task.state for task in tasks.values()} == {"success"}
    names = [f"f-{number:04d}.out" for number in range(12)]
    assert connected.outputs() == [*names, "g/.hidden.out"]
    figures = tasks["run"].xcom_pull(task_ids="run")
    assert figures["done"] == 13
    assert figures["run"].startswith("process_files-manual__")
    connected.settings["queue"] = "forms"
    now = connected.status(figures["run"])
    assert (now.buckets, now.parameters.timeout, now.queue) == (3, 30, "forms")
    assert now.parameters.set == {"mode": "fast", "size": 32}
    assert "bytes     " in said
    assert "cluster" not in said.partition("neither")[0]
    assert "neither max_replicas nor processor is given" in said


@pytest.mark.parametrize(
    ("param", "value", "said"),
    [
        ("suffix", "json", "suffix 'json': takes an ending like .json"),
        ("processor", "p.py", "processor 'p.py': takes package.module:function"),
        ("allow_failed", "many", "allow_failed 'many': takes a number of files, or a share"),
        ("set", ["a b=1"], "--set 'a b': this is not the name of a parameter"),
        ("max_failed", "many", "--max-failed 'many': takes a number of files, or a percentage"),
        ("queue", "a queue", "IMECE_QUEUE: "),
    ],
)
def test_a_wrong_word_in_the_form_is_answered_by_a_sentence(
    connected: Workbench, param: str, value: object, said: str
) -> None:
    """A pattern in the form would be answered by the form's JSON schema."""
    dag = dag_named("process_files")
    params = {name: one.value for name, one in dag.params.items()}
    params |= {"input": str(connected.source), "output": str(connected.target), param: value}
    dag.get_task("run").run_id = "run"
    dag.params.update({param: value})
    dag.params.validate()
    connected.files(1)
    task_id = "scale" if param == "processor" else "run"
    with pytest.raises(AirflowFailException) as raised:
        rendered(dag, task_id, params).execute({})
    assert said in str(raised.value)
    assert "schema" not in str(raised.value)


def test_no_help_in_a_form_begins_with_a_dash() -> None:
    for name in NAMES:
        for param in dag_named(name).params.values():
            sentences = (param.schema.get("description") or "x").split(". ")
            assert all(sentence[0].isalnum() for sentence in sentences), sentences


@pytest.mark.usefixtures("airflow_database")
def test_preflight_says_what_to_mend(
    connected: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    connected.server.stop()
    dag = dag_named("process_files")
    conf = {"input": str(connected.source), "output": str(connected.target)}
    dag_run = dag.test(run_conf=conf)
    states = {task.task_id: task.state for task in dag_run.get_task_instances()}
    assert states["preflight"] == "failed"
    assert states["run"] == "upstream_failed"
    assert "is out of reach" in capfd.readouterr().out
    connected.server.start()


def bucket_task() -> Any:
    """A static bucket's task, as it is after mapping and templating."""
    dag = dag_named("static_buckets")
    params = {name: param.value for name, param in dag.params.items()}
    params |= {"pull_secret": "pull", "image": "registry.example.com/imece:1", "claim": "files"}
    params |= {"namespace": "pods", "service_account": "pods", "memory": "2Gi"}
    params |= {"buckets": 2, "retries": 1, "include": ["*.csv", "/x/**"], "suffix": ".5"}
    [_, second] = bucket_pods({**params, "processor": "m:f"})
    return rendered(dag, "bucket", params, mapped=second)


@pytest.mark.usefixtures("kubernetes")
def test_a_static_bucket_s_pod_is_told_its_share_and_has_no_rights() -> None:
    pod = bucket_task().build_pod_request_obj().to_dict()
    spec = pod["spec"]
    [container] = spec["containers"]
    env = {one["name"]: one["value"] for one in container["env"]}
    assert env == {
        "bucket_id": "1",
        "bucket_count": "2",
        "IMECE_INPUT": "/data/in",
        "IMECE_OUTPUT": "/data/out",
        "IMECE_RETRIES": "1",
        "IMECE_PROCESSOR": "m:f",
    }
    assert container["image"] == "registry.example.com/imece:1"
    assert container["command"] == ["imece-worker"]
    assert container["args"] == [
        "--bucket-id", "$(bucket_id)", "--bucket-count", "$(bucket_count)",
        "--include", "*.csv", "--include", "/x/**", "--suffix", ".5",
    ]  # fmt: skip
    assert spec["image_pull_secrets"] == [{"name": "pull"}]
    assert spec["automount_service_account_token"] is False
    assert spec["security_context"]["run_as_non_root"] is True
    assert container["security_context"]["read_only_root_filesystem"] is True
    assert container["security_context"]["capabilities"]["drop"] == ["ALL"]
    mounts = {one["name"]: one["mount_path"] for one in container["volume_mounts"]}
    assert mounts == {"tmp": "/tmp", "data": "/data"}
    claims = [one["persistent_volume_claim"] for one in spec["volumes"]]
    assert claims[1]["claim_name"] == "files"
    assert pod["metadata"]["namespace"] == spec["service_account_name"] == "pods"
    # So that no ResourceQuota refuses it.
    resources = {"cpu": "1", "memory": "2Gi"}
    assert container["resources"]["requests"] == container["resources"]["limits"] == resources


@pytest.mark.usefixtures("airflow_database", "kubernetes")
def test_there_are_as_many_pods_as_the_form_says() -> None:
    dag = dag_named("static_buckets")
    dag_run = dag.test(run_conf={"buckets": 3, "suffix": ".5"}, mark_success_pattern="^bucket$")
    assert dag_run.state == "success"
    states = [(task.task_id, task.map_index) for task in dag_run.get_task_instances()]
    assert sorted(states) == [("bucket", 0), ("bucket", 1), ("bucket", 2), ("buckets", -1)]
    [buckets] = [task for task in dag_run.get_task_instances() if task.task_id == "buckets"]
    pods = buckets.xcom_pull(task_ids="buckets")
    assert [pod["env_vars"]["bucket_id"] for pod in pods] == ["0", "1", "2"]
    assert all(pod["arguments"][-1] == ".5" for pod in pods)
