"""docker-compose.yaml is right by the Compose specification, and means what deploy/ means."""

import re
import subprocess
import sys
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


def test_airflow_refuses_to_start_without_its_secrets(project: Project) -> None:
    service = project["services"]["airflow-migrate"]
    [script] = service["command"]
    done = subprocess.run(
        ["sh", "-euc", script.replace("$$", "$")],
        env={**service["environment"], "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "AIRFLOW_JWT_SECRET" in done.stderr
