"""A cluster, and imece in a namespace of its own there; by kubectl and imece alone."""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imece.run.store import ENDED
from tests.conftest import ROOT
from tests.e2e.trace import Trace
from tests.e2e.waits import until_said, within

ENVIRONMENT = dict(os.environ)
"""As it was before a fixture for all tests clears it."""

WORKERS = "app.kubernetes.io/name=imece,app.kubernetes.io/component=worker"
PIPELINE = "app.kubernetes.io/instance"
COST = "controller.kubernetes.io/pod-deletion-cost"
INPUT, OUTPUT = "/data/in", "/data/out"
LIMIT = 2
"""The limit of workers that a test finds."""

MAKE_FILES = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
for name, seconds in json.load(sys.stdin).items():
    (folder / name).write_text(str(seconds))
"""
LIST = """
import json, pathlib, sys
folders = map(pathlib.Path, sys.argv[1:])
print(json.dumps([[p.name for p in f.glob("*") if p.is_file()] for f in folders]))
"""


@dataclass(frozen=True)
class Options:
    """What differs from cluster to cluster; README.md explains each."""

    image: str
    namespace: str
    overlay: str
    storage_class: str | None
    access_mode: str
    limit: int
    control: tuple[str, ...]
    keep: bool

    @classmethod
    def read(cls, environment: dict[str, str]) -> "Options":
        """Raises LookupError, which says what is missing."""
        if not environment.get("KUBECONFIG"):
            raise LookupError("KUBECONFIG must name a cluster with KEDA in it")
        if not environment.get("IMECE_E2E_IMAGE"):
            raise LookupError("IMECE_E2E_IMAGE must name an image the cluster can pull")
        return cls(
            image=environment["IMECE_E2E_IMAGE"],
            namespace=environment.get("IMECE_E2E_NAMESPACE", "imece-e2e"),
            overlay=environment.get("IMECE_E2E_OVERLAY", "plain"),
            storage_class=environment.get("IMECE_E2E_STORAGE_CLASS"),
            access_mode=environment.get("IMECE_E2E_ACCESS_MODE", "ReadWriteMany"),
            limit=int(environment.get("IMECE_E2E_LIMIT", "20")),
            control=tuple(shlex.split(environment.get("IMECE_E2E_CONTROL", ""))),
            keep=bool(environment.get("IMECE_E2E_KEEP")),
        )

    def beside(self, name: str) -> "Options":
        """The same in another namespace."""
        return replace(self, namespace=f"{self.namespace}-{name}")


def split_image(image: str) -> dict[str, str]:
    """An image's address as kustomize wants it."""
    name, at, digest = image.partition("@")
    tagged = re.fullmatch(r"(.+):([\w.-]+)", name)
    address, tag = (tagged[1], tagged[2]) if tagged else (name, "latest")
    return {"newName": address, **({"digest": digest} if at else {"newTag": tag})}


def write_overlay(options: Options, folder: Path, deploy: Path = ROOT / "deploy") -> None:
    """An overlay as a user writes it, with small workers and the processor of the tests."""
    above = os.path.relpath(deploy.resolve(), folder.resolve())
    claim: list[dict[str, str]] = [
        {"op": "replace", "path": "/spec/accessModes/0", "value": options.access_mode},
        {"op": "replace", "path": "/spec/resources/requests/storage", "value": "1Gi"},
    ]
    if options.storage_class:
        storage = {"op": "add", "path": "/spec/storageClassName", "value": options.storage_class}
        claim.append(storage)
    volume = {"name": "processor", "configMap": {"name": "e2e-processor"}}
    mount = {"name": "processor", "mountPath": "/app/e2e.py", "subPath": "e2e.py"}
    worker: list[dict[str, Any]] = [
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": volume},
        {"op": "add", "path": "/spec/template/spec/containers/0/volumeMounts/-", "value": mount},
    ]
    nameless = {"$patch": "delete", "apiVersion": "v1", "kind": "Namespace"}
    patches: list[dict[str, Any]] = [
        {"target": {"kind": "PersistentVolumeClaim"}, "patch": json.dumps(claim)},
        {"target": {"kind": "Deployment", "name": "imece-worker"}, "patch": json.dumps(worker)},
    ]
    if options.overlay == "plain":  # the namespace is there already
        patches.append({"patch": json.dumps(nameless | {"metadata": {"name": "imece"}})})
    users = ("IMECE_REDIS_PASSWORD", "KEDA_REDIS_PASSWORD")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": options.namespace,
        "resources": [f"{above}/overlays/{options.overlay}"],
        "images": [{"name": "imece", **split_image(options.image)}],
        "configMapGenerator": [
            {
                "name": "values",
                "behavior": "merge",
                "literals": [f"MAX_REPLICAS={LIMIT}", "CPU=100m", "MEMORY=256Mi"],
            },
            {"name": "imece", "behavior": "merge", "literals": ["IMECE_PROCESSOR=e2e:work"]},
            {"name": "e2e-processor", "files": ["e2e.py"]},
        ],
        "secretGenerator": [
            {
                "name": "imece-redis",
                "behavior": "merge",
                "literals": [f"{user}={secrets.token_hex(32)}" for user in users],
            }
        ],
        "patches": patches,
        "transformers": [f"{above}/redis/wiring", f"{above}/wiring"],
    }
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "e2e.py").write_text((Path(__file__).parent / "processor.py").read_text())
    # JSON is YAML.
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization, indent=2))


@dataclass(frozen=True)
class Pod:
    """A worker's pod that is there and has not been told to go."""

    name: str
    node: str
    running: bool
    cost: str
    restarts: int


@dataclass
class Replicas:
    """How many workers the Deployment was told to have: moment and number, at each change."""

    changes: list[tuple[float, int]] = field(default_factory=list)

    def reached(self, number: int, since: float, seconds: float) -> float:
        """Waits until so many are wanted; the seconds it took from a moment on."""

        def moment() -> float | None:
            return next(
                (at for at, wanted in self.changes if at > since and wanted == number), None
            )

        within(seconds, lambda: moment() is not None, f"{number} workers to be wanted")
        found = moment()
        assert found is not None
        return found - since


class Cluster:
    """imece in its namespace: the first pipeline, or a further one."""

    source, target = INPUT, OUTPUT

    def __init__(self, options: Options, pipeline: str = "imece") -> None:
        self.options = options
        self.pipeline = pipeline
        self.ending = "" if pipeline == "imece" else f"-{pipeline}"

    # Commands

    def kubectl(self, *arguments: str, given: str | None = None, timeout: float = 120) -> str:
        """As a person would call it; its output. An error is the test's."""
        return call(self._kubectl(*arguments), given, timeout)

    def refused(self, *arguments: str, given: str | None = None) -> str | None:
        """The same where an error is an answer: what it says; None if there was none."""
        done = _run(self._kubectl(*arguments), given, 60)
        return done.stderr if done.returncode else None

    def _kubectl(self, *arguments: str) -> list[str]:
        return ["kubectl", "--namespace", self.options.namespace, *arguments]

    def imece(self, *arguments: str) -> str:
        """The command on this machine, by the kubeconfig."""
        return call(self._imece(*arguments), None, 60)

    def doctor(self) -> str:
        """What `imece doctor` says on this machine, whatever its exit code."""
        done = _run(self._imece("doctor"), None, 60)
        return done.stdout + done.stderr

    def _imece(self, *arguments: str) -> list[str]:
        command = [sys.executable, "-m", "imece_producer", *arguments]
        return [*command, "--namespace", self.options.namespace]

    def inside(self, *arguments: str, given: str | None = None, timeout: float = 120) -> str:
        """In the producer's pod, which sees Redis and the volume."""
        return self.kubectl(
            *("exec", "--stdin", f"deployment/imece-producer{self.ending}", "--", *arguments),
            given=given,
            timeout=timeout,
        )

    def control(self, *arguments: str) -> str:
        """What stops and starts parts of the cluster: `stop apiserver`, `node-kill NODE`."""
        return call([*self.options.control, *arguments], None, 120)

    # Coming and going

    def deploy(self, folder: Path) -> None:
        """Applies the overlay and waits until producer, Redis and KEDA are ready."""
        namespace = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": self.options.namespace,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
        }
        self.kubectl("apply", "-f", "-", given=json.dumps(namespace))
        write_overlay(self.options, folder)
        self.kubectl("apply", "-k", str(folder))
        for what in ("statefulset/imece-redis", "deployment/imece-producer"):
            self.kubectl("rollout", "status", what, "--timeout=300s", timeout=310)
        # KEDA asks again after pauses that double, up to 82 s, if Redis was not there at first.
        self.kubectl(
            *("wait", "--for=condition=Ready", "scaledobject/imece-worker", "--timeout=300s"),
            timeout=310,
        )

    def clear(self) -> None:
        """No run that is on, no worker, the limit of the overlay."""
        for run in json.loads(self.inside("imece", "runs", "--json")):
            if run["state"] not in ENDED:
                self.inside("imece", "cancel", run["run"])
        self.limit(LIMIT)
        # Else the autoscaler and KEDA wait for 45 s, in case more is to come.
        self.kubectl("scale", f"deployment/imece-worker{self.ending}", "--replicas=0")
        within(120, lambda: not self.pods(WORKERS), "no workers")

    def remove(self) -> None:
        self.kubectl("delete", "namespace", self.options.namespace, "--wait=true", timeout=600)

    # What is there

    def wanted(self) -> int:
        """How many workers the Deployment is told to have."""
        name = f"imece-worker{self.ending}"
        found = self.kubectl("get", "deployment", name, "-o", "jsonpath={.spec.replicas}")
        return int(found or 0)

    @contextmanager
    def replicas(self) -> Iterator[Replicas]:
        """Watches how many workers are wanted, for as long as the block lasts."""
        found = Replicas()
        path = r'jsonpath={.spec.replicas}{"\n"}'
        name = f"imece-worker{self.ending}"
        command = self._kubectl("get", "deployment", name, "--watch", "-o", path)
        with subprocess.Popen(command, env=OURS, stdout=subprocess.PIPE, text=True) as watch:

            def note() -> None:
                assert watch.stdout is not None
                for line in watch.stdout:
                    found.changes.append((time.time(), int(line)))

            noting = threading.Thread(target=note)
            noting.start()
            try:
                yield found
            finally:
                watch.terminate()
                noting.join()

    def pods(self, labels: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(
            self.kubectl("get", "pods", "-l", labels, "-o", "json")
        )["items"]
        return listed

    def workers(self) -> dict[str, Pod]:
        """The workers' pods by name, without those that are about to go."""
        ours = f"{WORKERS},{PIPELINE}={self.pipeline}"
        return {
            item["metadata"]["name"]: Pod(
                name=item["metadata"]["name"],
                node=item["spec"].get("nodeName", ""),
                running=item["status"].get("phase") == "Running",
                cost=item["metadata"].get("annotations", {}).get(COST, ""),
                restarts=sum(
                    container["restartCount"]
                    for container in item["status"].get("containerStatuses", [])
                ),
            )
            for item in self.pods(ours)
            if "deletionTimestamp" not in item["metadata"]
        }

    def running(self) -> set[str]:
        """The names of the workers' pods that run."""
        return {name for name, pod in self.workers().items() if pod.running}

    # Runs

    def limit(self, replicas: int) -> None:
        """By the service account of the producer's pod; `imece` does it by the kubeconfig."""
        self.inside("imece", "scale", str(replicas))

    def enqueue(self, run_id: str, seconds: dict[str, float]) -> "ClusterRun":
        """A run of files that take so many seconds each, a bucket job a file."""
        source, target = f"{self.source}/{run_id}", f"{self.target}/{run_id}/files"
        self.inside("python", "-c", MAKE_FILES, source, given=json.dumps(seconds))
        jobs = ("--buckets", "1", "--files-per-job", "1")
        began = time.time()
        self.inside("imece", "enqueue", source, target, "--run-id", run_id, *jobs)
        return ClusterRun(self, run_id, list(seconds), began)

    @contextmanager
    def redis_away(self, *delete: str) -> Iterator[None]:
        """Redis is gone for as long as the block lasts.

        Args:
            delete: options that say how its pod is to end.
        """
        redis = "statefulset/imece-redis"
        self.kubectl("scale", redis, "--replicas=0")
        if delete:
            self.refused("delete", "pod", "imece-redis-0", *delete)  # it may be gone already
        self.kubectl("wait", "--for=delete", "pod/imece-redis-0", "--timeout=120s", timeout=130)
        try:
            yield
        finally:
            self.kubectl("scale", redis, "--replicas=1")
            self.kubectl("rollout", "status", redis, "--timeout=300s", timeout=310)


@dataclass(frozen=True)
class ClusterRun:
    """A run in the cluster.

    Attributes:
        enqueued: when the call that enqueued it began.
    """

    cluster: Cluster
    id: str
    files: list[str]
    enqueued: float

    def trace(self) -> Trace:
        above = f"{self.cluster.target}/{self.id}"
        folders = (f"{above}/trace", f"{above}/files")
        notes, outputs = json.loads(self.cluster.inside("python", "-c", LIST, *folders))
        return Trace.read(notes, outputs)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.cluster.inside("imece", "status", self.id, "--json")
        )
        return found

    def until_told(self, said: str) -> None:
        """Waits until `imece doctor` and `imece status` say what keeps the workers from coming."""
        until_said(self.cluster.doctor, said)
        until_said(lambda: self.cluster.inside("imece", "status", self.id), said)

    def done(self, timeout: float = 600) -> Trace:
        """Waits until every file is done; what it has left behind. Failed files are an error."""
        self.cluster.inside("imece", "wait", self.id, timeout=timeout)
        return self.trace()


OURS = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("IMECE_")}


def call(command: list[str], given: str | None, timeout: float) -> str:
    done = _run(command, given, timeout)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
    return done.stdout


def _run(
    command: list[str], given: str | None, timeout: float
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=ROOT,
        env=OURS,
        input=given if given is not None else "",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
