"""A whole Airflow: PostgreSQL, api-server, scheduler, dag-processor and triggerer, as processes."""

import base64
import getpass
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tests.conftest import ROOT, until

PARTS = ("api-server", "scheduler", "dag-processor", "triggerer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Postgres:
    """A server of our own, on a socket in a folder of its own. It refuses to be run by root, and
    another user does not get into pytest's folders."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="imece-postgres-"))
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        self.programs = found[-1] if found else Path(str(shutil.which("postgres"))).parent
        self.user = "postgres" if os.getuid() == 0 else getpass.getuser()
        if os.getuid() == 0:
            owner = pwd.getpwnam(self.user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)

    def start(self) -> None:
        data = self.folder / "data"
        self._run("initdb", "-D", str(data), "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=200"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(data), "-w", "-l", log, "-o", options, "start")
        self._run("createdb", "-h", str(self.folder), "airflow")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def url(self, driver: str) -> str:
        return f"postgresql+{driver}://{self.user}@/airflow?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        # A server that stays holds no pipe of ours open.
        subprocess.run(
            [str(self.programs / program), *arguments],
            check=True,
            cwd=self.folder,
            user=self.user if os.getuid() == 0 else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


class Deployment:
    """All of Airflow's parts, and its REST interface."""

    def __init__(self, folder: Path, bundles: dict[str, Path], **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.postgres = Postgres()
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._token = ""
        self._environment = {
            **os.environ,
            "AIRFLOW_HOME": str(folder / "home"),
            "AIRFLOW__API__BASE_URL": self.address,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(32),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(
                [
                    {
                        "name": name,
                        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                        "kwargs": {"path": str(path)},
                    }
                    for name, path in bundles.items()
                ]
            ),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.postgres.url("psycopg2"),
            "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "1",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "PYTHONPATH": str(ROOT),
            **environment,
        }

    def start(self) -> None:
        self.postgres.start()
        with (self.folder / "migrate.log").open("wb") as log:
            self._airflow(log, "db", "migrate").wait(120)
        for part in PARTS:
            self.start_part(part)
        until(self._answers, "the api-server", 120)

    def start_part(self, part: str) -> None:
        arguments = ["--port", str(self.port)] if part == "api-server" else []
        with (self.folder / f"{part}.log").open("ab") as log:
            self._parts[part] = self._airflow(log, part, *arguments)

    def _airflow(self, log: Any, *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "airflow", *arguments],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def kill(self, part: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends a part and all its children."""
        process = self._parts.pop(part)
        try:
            os.killpg(process.pid, number)
            process.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()

    def stop(self) -> None:
        for part in list(self._parts):
            self.kill(part)
        self.postgres.stop()

    # REST

    def _answers(self) -> bool:
        try:
            self._token = self.ask("GET", "/auth/token")["access_token"]
        except (URLError, HTTPError, ConnectionError):
            return False
        return True

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        request = Request(  # noqa: S310 - our own address
            self.address + path,
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json", "Accept": "application/json"},
        )
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        with urlopen(request, timeout=20) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")

    def has(self, dag: str) -> bool:
        try:
            return bool(self.ask("GET", f"/api/v2/dags/{dag}")["dag_id"])
        except HTTPError:
            return False

    def trigger(self, dag: str, conf: dict[str, Any]) -> "DagRun":
        """Starts a run as the form in the browser does."""
        until(lambda: self.has(dag), f"the DAG {dag} to be parsed", 60)
        body = {"conf": conf, "logical_date": None}
        made = self.ask("POST", f"/api/v2/dags/{dag}/dagRuns", body)
        return DagRun(self, dag, made["dag_run_id"])


class DagRun:
    """One run of a DAG, by REST."""

    def __init__(self, airflow: Deployment, dag: str, run_id: str) -> None:
        self.airflow = airflow
        self.dag = dag
        self.id = run_id
        self.path = f"/api/v2/dags/{dag}/dagRuns/{run_id.replace('+', '%2B')}"

    def state(self) -> str:
        state: str = self.airflow.ask("GET", self.path)["state"]
        return state

    def task(self, name: str = "run") -> dict[str, Any]:
        found: dict[str, Any] = self.airflow.ask("GET", f"{self.path}/taskInstances/{name}")
        return found

    def reaches(self, state: str, task: str = "run", timeout: float = 60) -> dict[str, Any]:
        """Waits for a task to be in a state."""
        until(lambda: _slowly(self.task(task)["state"] == state), f"{task} to be {state}", timeout)
        return self.task(task)

    def ended(self, timeout: float = 90) -> str:
        until(lambda: _slowly(self.state() in ("success", "failed")), "the end", timeout)
        return self.state()

    def log(self, task: str = "run", attempt: int = 1) -> str:
        path = f"{self.path}/taskInstances/{task}/logs/{attempt}?full_content=true"
        return json.dumps(self.airflow.ask("GET", path), ensure_ascii=False)

    def clear(self, task: str = "run") -> None:
        body = {
            "dry_run": False,
            "dag_run_id": self.id,
            "task_ids": [task],
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self.airflow.ask("POST", f"/api/v2/dags/{self.dag}/clearTaskInstances", body)

    def mark(self, state: str, task: str = "run") -> None:
        self.airflow.ask("PATCH", f"{self.path}/taskInstances/{task}", {"new_state": state})


def _slowly(value: bool) -> bool:
    """Leaves the machine to Airflow between two questions."""
    if not value:
        time.sleep(0.3)
    return value
