"""Idle pods end first: the deletion cost of this worker's pod.

Of the pods that are ready, Kubernetes first deletes those with the lowest
`controller.kubernetes.io/pod-deletion-cost`. The manifests give every pod the cost of a busy one. A
worker without a job lowers its own, and raises it again with its next bucket job.

A separate process does that, the patcher. So no file waits for the cluster.
"""

import gc
import json
import logging
import os
import select
import signal
import socket
import ssl
import time
from http import HTTPStatus
from http.client import HTTPSConnection
from typing import NoReturn

from imece.process import follow_parent
from imece.settings import Settings
from imece_worker import log, stops

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
IDLE, BUSY = 0, 1000
TIMEOUT = 5.0
"""Seconds to connect to the API, and to hear from it."""
LONGEST_PAUSE = 30.0
NICENESS = 10
"""With one CPU only, the files go before the patcher."""


class DeletionCost:
    """The worker's side: it says which cost it wants, and never waits.

    Args:
        line: to the patcher; None outside a cluster.
        idle_after: seconds without a job that make a worker idle.
        patcher: its process id.
    """

    def __init__(
        self, line: socket.socket | None, idle_after: float, patcher: int | None = None
    ) -> None:
        self._patcher = patcher
        self._line = line
        self._idle_after = idle_after
        self._idle_since: float | None = None
        self._wanted: int | None = None

    def idle(self) -> None:
        """There is no job at the moment."""
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since >= self._idle_after:
            self._want(IDLE)

    def busy(self) -> None:
        """A job has come."""
        self._idle_since = None
        self._want(BUSY)

    def _want(self, cost: int) -> None:
        if self._line is None or cost == self._wanted:
            return
        try:
            self._line.send(b"%d\n" % cost)
        except BlockingIOError:
            return  # it is asked for again at the next turn
        except OSError:
            log.event("deletion cost left as it is: its process is gone", logging.WARNING)
            self._line = None
            if self._patcher is not None:
                os.waitpid(self._patcher, os.WNOHANG)
        self._wanted = cost


def start(settings: Settings) -> DeletionCost:
    """Forks the patcher, if this is a pod that may speak to its cluster. Called before anything
    starts a thread."""
    token = settings.service_account_dir / "token"
    if not (settings.pod_name and settings.pod_namespace and token.is_file()):
        return DeletionCost(None, settings.idle_after)
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    patcher = os.fork()
    if patcher == 0:
        ours.close()
        _run(theirs, settings, parent)
    theirs.close()
    ours.setblocking(False)
    return DeletionCost(ours, settings.idle_after, patcher)


def _run(line: socket.socket, settings: Settings, parent: int) -> NoReturn:
    """The child's side of the fork; does not come back."""
    try:
        follow_parent(parent, signal.SIGKILL)
        stops.ignore()
        os.nice(NICENESS)
        gc.freeze()  # what it shares with the worker stays shared
        _serve(line, settings)
    except BaseException:
        log.logger.exception("the process that sets the deletion cost has crashed")
    finally:
        os._exit(0)


def _serve(line: socket.socket, settings: Settings) -> None:
    """Patches the last cost that the worker wanted, until that succeeds; ends with the worker."""
    wanted = told = None
    pause: float | None = None
    while True:
        if select.select([line], [], [], pause)[0]:
            heard = line.recv(4096)
            if not heard:
                return
            wanted = int(heard.split()[-1])
        if wanted is None or wanted == told:
            pause = None
            continue
        try:
            _patch(settings, wanted)
            told, pause = wanted, None
        except Exception as error:  # no error here may disturb the worker
            if pause is None:
                reason = " ".join(str(error).split()) or type(error).__name__
                log.event("deletion cost not set", logging.WARNING, reason=reason)
            told, pause = None, min(2 * (pause or 0.5), LONGEST_PAUSE)


def _patch(settings: Settings, cost: int) -> None:
    """One request, with the token as it is now: the kubelet renews it in its file."""
    folder = settings.service_account_dir
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    # Python 3.13 refuses CAs of clusters that lack an extension (docs of create_default_context).
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    host, port = (os.environ[f"KUBERNETES_SERVICE_{name}"] for name in ("HOST", "PORT"))
    server = HTTPSConnection(host, int(port), timeout=TIMEOUT, context=context)
    try:
        server.request(
            "PATCH",
            f"/api/v1/namespaces/{settings.pod_namespace}/pods/{settings.pod_name}",
            json.dumps({"metadata": {"annotations": {ANNOTATION: str(cost)}}}),
            {
                "Authorization": f"Bearer {(folder / 'token').read_text().strip()}",
                "Content-Type": "application/merge-patch+json",
            },
        )
        answer = server.getresponse()
        answer.read()
    finally:
        server.close()
    if answer.status != HTTPStatus.OK:
        forbidden = answer.status == HTTPStatus.FORBIDDEN
        hint = ": may the service account patch pods? (deploy/base)" if forbidden else ""
        raise OSError(f"the cluster answered {answer.status} {answer.reason}{hint}")
