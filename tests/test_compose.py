"""docker-compose.yaml is right by the Compose specification, and means what deploy/ means."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from imece.settings import PREFIX, Settings
from tests import schemas
from tests.conftest import ROOT

Project = dict[str, Any]


@pytest.fixture(scope="module")
def project() -> Project:
    """The file as podman-compose reads it: variables put in, anchors and merges carried out."""
    done = subprocess.run(
        [
            Path(sys.executable).parent / "podman-compose",
            # A stand-in for podman, whose version it asks for.
            *("--podman-path", "/bin/echo"),
            *("--file", ROOT / "docker-compose.yaml"),
            *("--env-file", ROOT / ".env.example"),
            *("--profile", "producer"),
            *("--profile", "airflow"),
            "config",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Before the file comes what the stand-in said.
    project: Project = yaml.safe_load(done.stdout[done.stdout.index("name:") :])
    return project


def test_the_file_is_right_by_the_specification() -> None:
    schema = schemas.read("compose")
    jsonschema.validate(yaml.safe_load((ROOT / "docker-compose.yaml").read_text()), schema)


def test_it_is_right_with_the_variables_put_in(project: Project) -> None:
    jsonschema.validate(project, schemas.read("compose"))
    assert "${" not in yaml.safe_dump(project)


def test_every_variable_is_in_the_example_and_has_a_default() -> None:
    text = (ROOT / "docker-compose.yaml").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+):-[^}]+\}", text))
    assert used == set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text)), "one has no default"
    given = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^([A-Z_]+)=", given, flags=re.MULTILINE)) == used
    assert not any(name.startswith(PREFIX) for name in used)  # producers would read them from .env


def test_redis_loses_nothing(project: Project) -> None:
    command = project["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert "--maxmemory" in options
    assert "ports" not in project["services"]["redis"]  # there is no password


@pytest.mark.parametrize("name", ["worker", "producer"])
def test_a_container_can_do_no_more_than_it_needs(name: str, project: Project) -> None:
    service = project["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["user"].endswith(":0")
    assert not service["user"].startswith("0:")


def test_workers_can_be_scaled(project: Project) -> None:
    """A name or a port of its own would be taken by the first one."""
    worker = project["services"]["worker"]
    assert not {"container_name", "ports", "hostname"} & set(worker)
    assert not {"command", "entrypoint"} & set(worker)  # the image's, so that signals reach it


def test_every_setting_in_it_is_one(project: Project) -> None:
    for name in ("worker", "producer"):
        given = project["services"][name]["environment"]
        values = {key.removeprefix(PREFIX).lower(): value for key, value in given.items()}
        assert set(values) <= set(Settings.model_fields)
        assert Settings(**values).processor == "shutil:copyfile"


AIRFLOW = {
    f"airflow-{part}"
    for part in ("migrate", "api-server", "scheduler", "dag-processor", "triggerer")
}


def test_airflow_is_one_image_that_comes_only_when_asked_for(project: Project) -> None:
    services = project["services"]
    assert {name for name in services if name.startswith("airflow")} == {
        *AIRFLOW,
        "airflow-postgres",
    }
    assert len({services[name]["image"] for name in AIRFLOW}) == 1
    for name in (*AIRFLOW, "airflow-postgres"):
        assert services[name]["profiles"] == ["airflow"]
        assert "pip" not in str(services[name].get("command"))
    for name in AIRFLOW - {"airflow-migrate"}:
        waits_for = services[name]["depends_on"]
        assert waits_for["airflow-migrate"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", sorted(AIRFLOW))
def test_airflow_can_do_no_more_than_it_needs(name: str, project: Project) -> None:
    service = project["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert not service["user"].startswith("0:")
    assert set(service["secrets"]) == {"kubeconfig", "kube-ca"}
    assert all("secret" not in str(volume) for volume in service["volumes"])


def test_airflow_s_parts_share_one_key_each_and_none_is_in_the_repository(
    project: Project,
) -> None:
    for key in ("AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__FERNET_KEY"):
        given = {project["services"][name]["environment"][key] for name in AIRFLOW}
        assert given == {"unset"}  # which airflow-migrate refuses
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"/secrets/", "/.env"} <= set(ignored)


def migrate(project: Project, secrets: Path, **values: str) -> subprocess.CompletedProcess[str]:
    """Runs the script of airflow-migrate, not as root, with a stand-in for Airflow."""
    service = project["services"]["airflow-migrate"]
    [script] = service["command"]
    program = secrets / "airflow"
    program.write_text('#!/bin/sh\necho "airflow $*"\n')
    program.chmod(0o755)
    return subprocess.run(
        ["sh", "-euc", script.replace("$$", "$").replace("/run/secrets", str(secrets))],
        env={**service["environment"], "PATH": f"{secrets}:/usr/bin:/bin"} | values,
        user=1000 if os.getuid() == 0 else None,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def secrets() -> Iterator[Path]:
    """A directory that another user may enter, as those of pytest are not; two files in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file in ("kubeconfig", "kube-ca"):
            (folder / file).touch(0o644)
        yield folder


GIVEN = dict.fromkeys(
    ("AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__FERNET_KEY", "POSTGRES_PASSWORD"), "given"
)


def test_airflow_refuses_to_start_without_its_secrets(project: Project, secrets: Path) -> None:
    done = migrate(project, secrets)
    assert done.returncode == 2
    assert "AIRFLOW_JWT_SECRET" in done.stderr


def test_a_kubeconfig_that_the_container_cannot_read_is_said_with_its_remedy(
    project: Project, secrets: Path
) -> None:
    assert migrate(project, secrets, **GIVEN).stdout == "airflow db migrate\n"
    (secrets / "kubeconfig").chmod(0o600 if os.getuid() == 0 else 0)
    done = migrate(project, secrets, **GIVEN)
    assert done.returncode == 2
    assert f"cannot read {secrets}/kubeconfig" in done.stderr
    assert "Set USER_ID in .env" in done.stderr
    assert "rootless engine: 0" in done.stderr


# Health

PARTS = {"scheduler": "scheduler", "dag-processor": "dag_processor", "triggerer": "triggerer"}


@pytest.mark.parametrize("status", ["healthy", "unhealthy", None])
@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_part_of_airflow_is_healthy_if_the_api_server_says_so(
    part: str, status: str | None, project: Project
) -> None:
    parts = {name: {"status": "healthy"} for name in PARTS.values()}
    health = json.dumps(parts | {PARTS[part]: {"status": status}}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/v2/monitor/health"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(health)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        kind, _, *arguments = project["services"][f"airflow-{part}"]["healthcheck"]["test"]
        assert kind == "CMD"
        address = f"127.0.0.1:{server.server_port}"
        code = [one.replace("airflow-api-server:8080", address) for one in arguments]
        done = subprocess.run([sys.executable, *code], check=False, timeout=60)
    assert done.returncode == (0 if status == "healthy" else 1)


def test_every_part_that_stays_has_a_health_check(project: Project) -> None:
    for name, service in project["services"].items():
        if name not in ("airflow-migrate", "producer"):
            assert service["healthcheck"]["test"], name


# SELinux


def test_what_is_mounted_of_this_machine_gets_the_label_of_containers(project: Project) -> None:
    for name, service in project["services"].items():
        for volume in service.get("volumes", []):
            source, _, options = volume.split(":", 2) if volume.count(":") > 1 else (volume, "", "")
            if source.startswith((".", "/")):
                assert "z" in options.split(","), (name, volume)
    for secret in project["secrets"].values():
        assert secret["x-podman.relabel"] == "z"
