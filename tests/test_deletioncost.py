"""The promise: idle pods go first, and no file waits for the cluster.

The API server here is a stand-in: it speaks HTTPS and takes the one request a worker makes.
"""

import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from imece_worker.capture import DRAINER
from imece_worker.loader import TEMPLATE
from tests.conftest import Workbench, WorkerProcess, is_running, until
from tests.forks import children

IDLE, BUSY = "0", "1000"
PATH = "/api/v1/namespaces/imece/pods/imece-worker-1"
ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"


@dataclass(frozen=True)
class Patch:
    path: str
    kind: str
    token: str
    body: object

    @property
    def cost(self) -> str:
        """The deletion cost it sets; nothing else may be in it."""
        assert isinstance(self.body, dict)
        value: str = self.body["metadata"]["annotations"][ANNOTATION]
        assert self.body == {"metadata": {"annotations": {ANNOTATION: value}}}
        return value


class ApiServer:
    """A stand-in for the Kubernetes API: notes patches, answers `status` once `open` is set."""

    def __init__(self, authority: trustme.CA) -> None:
        self.patches: list[Patch] = []
        self.status = 200
        self.open = threading.Event()
        self.open.set()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._tls)
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    def start(self) -> None:
        """Listens, on the port it had before, if any."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                kind, token = self.headers["Content-Type"], self.headers["Authorization"]
                api.patches.append(Patch(self.path, kind, token, body))
                api.open.wait(30)
                answer = {"kind": "Status", "message": "x" * 200} if api.status != 200 else {}
                data = json.dumps(answer).encode()
                self.send_response(api.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, address: object) -> None:
                pass  # a client that did not wait for its answer

        self._server = Server(("127.0.0.1", self.port), Handler)
        self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.open.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def costs(self) -> list[str]:
        return [patch.cost for patch in self.patches]


class Pod:
    """What a cluster gives to a worker: an API, a token, a CA, a name."""

    def __init__(self, workbench: Workbench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        authority = trustme.CA()
        self.workbench = workbench
        self.account = folder / "account"
        self.account.mkdir()
        authority.cert_pem.write_to_path(str(self.account / "ca.crt"))
        self.give_token("first")
        self.api = ApiServer(authority)
        self.api.start()
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(self.api.port))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        workbench.settings |= {
            "log_format": "json",
            "pod_name": "imece-worker-1",
            "pod_namespace": "imece",
            "idle_after": "0.3",
            "service_account_dir": str(self.account),
        }

    def give_token(self, token: str) -> None:
        """As the kubelet does it: a new file in the place of the old one."""
        (self.account / "new").write_text(token)
        (self.account / "new").rename(self.account / "token")

    def worker(self) -> WorkerProcess:
        return self.workbench.worker().started()

    def works_on(self, run_id: str, files: int = 3) -> None:
        """A run from enqueue to end."""
        self.workbench.files(files)
        self.workbench.enqueue(run_id, overwrite=True)
        assert self.workbench.ended(run_id).done == files

    def is_out_of_work(self) -> bool:
        redis = self.workbench.redis
        return all(redis.hget(key, "state") == b"idle" for key in redis.smembers("rq:workers"))

    def has_time_to_become_idle(self) -> None:
        """Which shows nowhere but at the API."""
        time.sleep(1)

    def costs(self, *costs: str) -> None:
        """Waits until the API has been asked for exactly these, in this order."""
        until(lambda: len(self.api.patches) >= len(costs), f"the costs {costs}")
        assert self.api.costs() == list(costs)


@pytest.fixture
def pod(workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    made = Pod(workbench, tmp_path, monkeypatch)
    yield made
    made.api.stop()


def complaints(worker: WorkerProcess) -> list[str]:
    return [entry["reason"] for entry in worker.events("deletion cost not set")]


def test_an_idle_worker_makes_its_pod_cheap_and_a_busy_one_dear_again(pod: Pod) -> None:
    worker = pod.worker()
    pod.costs(IDLE)
    pod.works_on("first")
    pod.costs(IDLE, BUSY, IDLE)
    pod.works_on("second")
    pod.costs(IDLE, BUSY, IDLE, BUSY, IDLE)
    for patch in pod.api.patches:
        assert (patch.path, patch.token) == (PATH, "Bearer first")
        assert patch.kind.endswith("merge-patch+json")  # merge-patch or strategic-merge-patch
    assert complaints(worker) == []
    assert worker.stop() == 0


def test_a_short_while_without_a_job_is_not_idleness(pod: Pod) -> None:
    pod.workbench.settings["idle_after"] = "60"
    pod.worker()
    for run_id in ("first", "second"):
        pod.works_on(run_id)
        until(pod.is_out_of_work, "the worker to find nothing more")
    pod.costs(BUSY)


def test_the_token_is_read_again_for_every_request(pod: Pod) -> None:
    pod.worker()
    pod.costs(IDLE)
    pod.give_token("second")
    pod.works_on("run")
    pod.costs(IDLE, BUSY, IDLE)
    assert [patch.token for patch in pod.api.patches] == ["Bearer first", *["Bearer second"] * 2]


def test_a_refusal_is_logged_once_and_harms_nothing(pod: Pod) -> None:
    pod.api.status = 403
    worker = pod.worker()
    until(lambda: len(pod.api.patches) >= 2, "a second try")
    pod.works_on("run")
    until(lambda: BUSY in pod.api.costs(), "the next try")
    [reason] = complaints(worker)
    assert "403" in reason
    assert "may the service account patch pods?" in reason
    assert "first" not in worker.log()  # the token
    assert worker.stop() == 0


def test_an_api_that_is_away_is_logged_once_and_asked_again(pod: Pod) -> None:
    pod.api.stop()
    worker = pod.worker()
    until(lambda: complaints(worker), "the complaint")
    pod.works_on("run")
    pod.has_time_to_become_idle()
    pod.api.start()
    until(lambda: pod.api.costs() == [IDLE], "the last cost that was wanted")
    assert len(complaints(worker)) == 1


def test_no_file_waits_for_an_api_that_hangs_and_only_the_last_cost_is_sent(pod: Pod) -> None:
    pod.workbench.settings["processor"] = "tests.processors:by_content"
    worker = pod.worker()
    pod.costs(IDLE)
    pod.api.open.clear()
    began = time.monotonic()
    pod.works_on("first")
    assert time.monotonic() - began < 2
    pod.has_time_to_become_idle()
    pod.workbench.file("f-0000.txt", "sleep 2")
    pod.workbench.enqueue("second", overwrite=True)
    until(lambda: worker.events("job taken")[-1]["run"] == "second", "the next job")
    pod.api.open.set()
    time.sleep(0.5)  # for what must not come: the cost of the idle moment
    assert pod.api.costs() == [IDLE, BUSY]
    assert pod.workbench.ended("second").done == 3
    pod.costs(IDLE, BUSY, IDLE)
    assert complaints(worker) == []


def test_a_hanging_request_is_given_up_in_time(pod: Pod) -> None:
    pod.api.open.clear()
    worker = pod.worker()
    [reason] = until(lambda: complaints(worker), "the complaint")
    assert "timed out" in reason
    pod.api.open.set()
    until(lambda: len(pod.api.patches) >= 2, "a second try")
    assert set(pod.api.costs()) == {IDLE}


def test_a_wrong_ca_is_a_complaint_like_any_other(pod: Pod) -> None:
    trustme.CA().cert_pem.write_to_path(str(pod.account / "ca.crt"))
    worker = pod.worker()
    [reason] = until(lambda: complaints(worker), "the complaint")
    assert "CERTIFICATE_VERIFY_FAILED" in reason
    pod.works_on("run")


def patchers(worker: WorkerProcess) -> list[int]:
    """Children of a worker that has had no job yet, but drainer and template."""
    named = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in children(worker.pid)}
    return [pid for pid, name in named.items() if name not in (DRAINER, TEMPLATE)]


@pytest.mark.parametrize("missing", ["pod_name", "pod_namespace", "token"])
def test_outside_of_a_cluster_there_is_no_patcher(pod: Pod, missing: str) -> None:
    if missing == "token":
        (pod.account / "token").unlink()
    else:
        del pod.workbench.settings[missing]
    worker = pod.worker()
    until(lambda: patchers(worker) == [], "all others to bear their names")
    pod.works_on("run")
    assert pod.api.patches == []


def test_a_worker_goes_on_without_its_patcher(pod: Pod) -> None:
    worker = pod.worker()
    pod.costs(IDLE)
    [pid] = until(lambda: len(found := patchers(worker)) == 1 and found, "the patcher alone")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_running(pid), "the patcher to die")
    pod.works_on("first")
    pod.works_on("second")
    assert len(worker.events("deletion cost left as it is: its process is gone")) == 1
    assert worker.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_patcher_ends_with_its_worker(pod: Pod, number: signal.Signals) -> None:
    pod.api.open.clear()  # it has a request under way
    worker = pod.worker()
    until(lambda: pod.api.patches, "the first request")
    [pid] = until(lambda: len(found := patchers(worker)) == 1 and found, "the patcher alone")
    worker.kill(number)
    worker.wait()
    until(lambda: not is_running(pid), "the patcher to end", timeout=1)
