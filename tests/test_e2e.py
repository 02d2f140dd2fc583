"""What the end-to-end tests stand on, as far as it can be tried without a cluster."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Workbench
from tests.e2e.cluster import LIST, MAKE_FILES, Cluster, Options, split_image, write_overlay
from tests.e2e.test_pipelines import Scans, write
from tests.e2e.trace import Trace
from tests.manifests import rendered

NAMES = ["a", "b", "c"]


def a_run_with(workbench: Workbench) -> Trace:
    """A run of the tests' processor, and what it leaves behind."""
    for name in NAMES:
        workbench.file(name, "0.1")
    workbench.settings["processor"] = "tests.e2e.processor:work"
    workbench.enqueue()
    workbench.worker()
    assert workbench.ended().done == len(NAMES)
    notes = [note.name for note in (workbench.folder / "trace").iterdir()]
    return Trace.read(notes, workbench.outputs())


def test_a_sound_run_has_no_flaws(workbench: Workbench) -> None:
    trace = a_run_with(workbench)
    assert trace.flaws(NAMES) == []
    [pod] = trace.pods(NAMES)
    assert pod == os.uname().nodename


def test_lost_and_repeated_files_show(workbench: Workbench) -> None:
    trace = a_run_with(workbench)
    assert trace.flaws([*NAMES, "d"]) == ["d has no output", "d was not finished"]
    assert trace.flaws(["a", "b"]) == ["c was not asked for"]
    trace.begun["a"].append("another")
    assert len(trace.flaws(NAMES)) == 1
    assert trace.flaws(NAMES, deaths=1) == []
    trace.begun["b"].append("another")
    assert len(trace.flaws(NAMES, deaths=1)) == 2
    trace.finished["c"].append("another")
    assert any("finished" in flaw for flaw in trace.flaws(NAMES))


def test_the_scripts_for_the_producers_pod_make_and_list_files(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "run"
    made = [sys.executable, "-c", MAKE_FILES, str(folder)]
    subprocess.run(made, input='{"a": 2.5, "b": 0}', text=True, check=True)
    assert (folder / "a").read_text() == "2.5"
    listed = [sys.executable, "-c", LIST, str(folder), str(tmp_path / "absent")]
    names, nothing = json.loads(subprocess.check_output(listed))
    assert (sorted(names), nothing) == (["a", "b"], [])


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["KUBECONFIG", "IMECE_E2E_IMAGE"])
def test_without_a_cluster_they_fail_and_say_what_is_missing(missing: str) -> None:
    environment = {**os.environ, "KUBECONFIG": "/nowhere", "IMECE_E2E_IMAGE": "imece:e2e"}
    del environment[missing]
    asked = [sys.executable, "-m", "pytest", "-n", "0", "-m", "e2e", "tests/e2e/test_scaling.py"]
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    done = subprocess.run(
        [*asked, "-k", "limit_goes", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert f"{missing} must name" in done.stdout
    assert "tests/e2e/README.md" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("imece:e2e", {"newName": "imece", "newTag": "e2e"}),
        ("host:5000/a/imece", {"newName": "host:5000/a/imece", "newTag": "latest"}),
        ("host:5000/a/imece:1", {"newName": "host:5000/a/imece", "newTag": "1"}),
        ("a/imece@sha256:ab", {"newName": "a/imece", "digest": "sha256:ab"}),
    ],
)
def test_an_images_address_is_taken_apart(image: str, parts: dict[str, str]) -> None:
    assert split_image(image) == parts


def options_for(overlay: str) -> Options:
    """As they are read from the environment, for a namespace of their own."""
    given = {
        "KUBECONFIG": "/nowhere",
        "IMECE_E2E_IMAGE": "host/imece:1",
        "IMECE_E2E_NAMESPACE": "else",
        "IMECE_E2E_OVERLAY": overlay,
        "IMECE_E2E_STORAGE_CLASS": "shared",
        "IMECE_E2E_ACCESS_MODE": "ReadWriteOnce",
    }
    return Options.read(given).beside("where")


@pytest.mark.parametrize("overlay", ["plain", "openshift"])
def test_the_overlay_takes_up_what_it_is_given(tmp_path: Path, overlay: str) -> None:
    write_overlay(options_for(overlay), tmp_path / "overlay")
    made = rendered(tmp_path / "overlay")
    objects = {(o["kind"], o["metadata"]["name"]): o for o in made}
    assert ("Namespace", "imece") not in objects
    assert {o["metadata"].get("namespace") for o in objects.values()} == {"else-where"}
    pod = objects["Deployment", "imece-worker"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "host/imece:1"
    assert "/app/e2e.py" in [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    claim = objects["PersistentVolumeClaim", "imece-data"]["spec"]
    assert claim["accessModes"] == ["ReadWriteOnce"]
    assert claim["storageClassName"] == "shared"
    assert objects["ScaledObject", "imece-worker"]["spec"]["maxReplicaCount"] == 2
    [settings] = [o["data"] for o in objects.values() if "IMECE_PROCESSOR" in o.get("data", {})]
    assert settings["IMECE_PROCESSOR"] == "e2e:work"
    assert ".else-where.svc" in settings["IMECE_REDIS_URL"]
    passwords = objects["Secret", "imece-redis"]["data"].values()
    assert [len(base64.b64decode(password)) for password in passwords] == [64, 64]


@pytest.mark.parametrize("overlay", ["plain", "openshift"])
def test_the_further_pipeline_has_the_same_processor_and_paths(
    tmp_path: Path, overlay: str
) -> None:
    made = rendered(write(Cluster(options_for(overlay)), tmp_path / "deploy"))
    objects = {(o["kind"], o["metadata"]["name"]): o for o in made}
    assert {o["metadata"]["namespace"] for o in made} == {"else-where"}
    pod = objects["Deployment", "imece-worker-scans"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (processor,) = (v["configMap"]["name"] for v in pod["volumes"] if v["name"] == "processor")
    assert "def work" in objects["ConfigMap", processor]["data"]["e2e.py"]
    assert container["resources"]["requests"] == {"cpu": "100m", "memory": "256Mi"}
    places = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert {"/app/e2e.py", Scans.source, Scans.target} <= set(places)
