"""The manifests: right by their schemas, safe, and each thing in one place."""

import base64
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from imece.run import keys
from imece.settings import PREFIX, Settings
from imece_producer.cluster.rights import ASK_KEDA
from imece_producer.local.server import Server, program
from tests import schemas
from tests.conftest import ROOT, Workbench, WorkerProcess, until
from tests.manifests import DEPLOY, Manifest, every_key, one, pod, pods, rendered

KUSTOMIZATIONS = ["ask-keda", "base", "redis", "producer", "own-pod-only", "build/plain"] + [
    f"overlays/{name}" for name in ("plain", "openshift", "example")
]
OVERLAYS = [name for name in KUSTOMIZATIONS if name.startswith("overlays/")]

OLDEST, NEWEST = "1.31", "1.37"
"""The versions of Kubernetes the objects have to be right for, with all between."""

Render = Callable[[str], list[Manifest]]


@pytest.fixture(scope="session")
def render() -> Render:
    """The objects of a directory of deploy/, rendered once."""
    known: dict[str, list[Manifest]] = {}

    def render(name: str) -> list[Manifest]:
        if name not in known:
            known[name] = rendered(DEPLOY / name)
        return known[name]

    return render


# Schemas


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_each_object_is_right_by_its_schema(name: str, version: str, render: Render) -> None:
    manifests = render(name)
    assert manifests
    for manifest in manifests:
        if manifest["apiVersion"].startswith("keda.sh/"):
            schema = schemas.read(f"keda-{manifest['kind'].lower()}")
            jsonschema.validate(manifest["spec"], schema["properties"]["spec"])
            assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_field_that_keda_does_not_know_is_found(render: Render) -> None:
    """A check of the check: the cluster would drop such a field without a word."""
    scaled = one(render("base"), "ScaledObject", "imece-worker")["spec"] | {"maxReplicas": 3}
    schema = schemas.read("keda-scaledobject")["properties"]["spec"]
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.validate(scaled, schema)


def test_what_openshift_adds_for_builds_is_the_scc_and_its_use(render: Render) -> None:
    """The cluster's own kind has no schema here; tests/airflow/test_image.py compares it."""
    added = [one for one in render("build/openshift") if one not in render("build/plain")]
    assert [one["kind"] for one in added if "openshift" in one["apiVersion"]] == [
        "SecurityContextConstraints"
    ]
    for manifest in added:
        if "openshift" not in manifest["apiVersion"]:
            kubernetes_validate.validate(manifest, NEWEST, strict=True)


# Safety


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_container_can_do_more_than_it_needs(name: str, render: Render) -> None:
    specs = list(pods(render(name)))
    assert len(specs) == 3
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            for kind in ("requests", "limits"):
                assert set(container["resources"][kind]) == {"cpu", "memory"}


def test_on_openshift_no_user_or_group_is_named(render: Render) -> None:
    fixed = {"runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"}
    assert not fixed & set(every_key(render("overlays/openshift")))


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_service_named_imece_redis_sets_no_setting(name: str, render: Render) -> None:
    """Kubernetes would set IMECE_REDIS_PORT and others for it."""
    assert [spec["enableServiceLinks"] for spec in pods(render(name))] == [False] * 3


def test_a_worker_may_patch_pods_and_do_nothing_else(render: Render) -> None:
    role = one(render("base"), "Role", "imece-worker")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}]
    assert "ClusterRole" not in {manifest["kind"] for manifest in render("overlays/plain")}


def test_the_right_to_ask_keda_is_the_producers_and_can_be_left_out(render: Render) -> None:
    """Who applies a Role must have its rights: a project's admin on OpenShift has not this one."""
    role, binding = render("ask-keda")
    assert role["rules"] == [
        {"apiGroups": [ASK_KEDA.group], "resources": [ASK_KEDA.resource], "verbs": [ASK_KEDA.verb]}
    ]
    assert [subject["name"] for subject in binding["subjects"]] == ["imece-producer"]
    assert one(render("overlays/plain"), "Role", "imece-ask-keda")["rules"] == role["rules"]
    assert ASK_KEDA.group not in str(render("overlays/openshift"))


def test_the_policy_for_workers_is_for_the_account_and_the_request_they_use(
    render: Render,
) -> None:
    """What it lets through, a real API server says."""
    policy, binding = render("own-pod-only")
    account = one(render("base"), "ServiceAccount", "imece-worker")["metadata"]["name"]
    (condition,) = policy["spec"]["matchConditions"]
    assert condition["expression"].endswith(f"+ ':{account}')")  # and more: another pipeline's
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    for manifests in (render(name) for name in OVERLAYS):  # one for the whole cluster: not theirs
        assert policy["kind"] not in {manifest["kind"] for manifest in manifests}


def test_passwords_are_files_of_the_right_containers_only(render: Render) -> None:
    for name in ("imece-worker", "imece-producer"):
        (secret,) = (
            volume["secret"]
            for volume in pod(render("overlays/plain"), name)["volumes"]
            if "secret" in volume
        )
        assert [item["key"] for item in secret["items"]] == ["IMECE_REDIS_PASSWORD"]
    for spec in pods(render("overlays/plain")):
        for container in spec["containers"]:
            sources = [entry.get("valueFrom", {}) for entry in container.get("env", [])]
            assert not any("secretKeyRef" in source for source in sources)
            assert not any("secretRef" in source for source in container.get("envFrom", []))


# The worker and what scales it


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_number_of_workers_is_kedas(name: str, render: Render) -> None:
    assert "replicas" not in one(render(name), "Deployment", "imece-worker")["spec"]
    scaled = one(render(name), "ScaledObject", "imece-worker")["spec"]
    assert scaled["scaleTargetRef"] == {"name": "imece-worker"}
    assert scaled["minReplicaCount"] == 0
    assert "fallback" not in scaled


def test_the_need_is_all_jobs_wherever_they_are(render: Render) -> None:
    scaled = one(render("overlays/plain"), "ScaledObject", "imece-worker")["spec"]
    modifiers = scaled["advanced"]["scalingModifiers"]
    names = [trigger["name"] for trigger in scaled["triggers"]]
    assert sorted(modifiers["formula"].split(" + ")) == sorted(names)
    assert (modifiers["target"], modifiers["metricType"]) == ("1", "AverageValue")
    assert {trigger["metadata"]["listLength"] for trigger in scaled["triggers"]} == {"1"}


@pytest.mark.parametrize("direction", ["scaleUp", "scaleDown"])
def test_nothing_of_how_it_scales_is_left_to_defaults(direction: str, render: Render) -> None:
    scaled = one(render("overlays/plain"), "ScaledObject", "imece-worker")["spec"]
    spec = schemas.read("keda-scaledobject")["properties"]["spec"]
    path = ("advanced", "horizontalPodAutoscalerConfig", "behavior", direction)
    for step in path:
        scaled, spec = scaled[step], spec["properties"][step]
    assert set(scaled) == set(spec["properties"])
    assert scaled["tolerance"] == "0"


def test_signals_reach_the_worker_and_the_busy_stay(render: Render) -> None:
    template = one(render("overlays/plain"), "Deployment", "imece-worker")["spec"]["template"]
    (worker,) = template["spec"]["containers"]
    assert not {"command", "args"} & set(worker)  # the image's entrypoint, in exec form
    assert "readinessProbe" not in worker
    cost = template["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"]
    assert cost == "1000"


@pytest.mark.parametrize(
    ("age", "alive"), [(0, True), (50, True), (70, False), (4000, False), (None, False)]
)
@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe"])
def test_the_probes_look_at_the_age_of_the_heartbeat(
    probe: str, age: int | None, alive: bool, render: Render, tmp_path: Path
) -> None:
    (worker,) = pod(render("overlays/plain"), "imece-worker")["containers"]
    (beat,) = (entry["value"] for entry in worker["env"] if "HEARTBEAT" in entry["name"])
    if age is not None:
        (tmp_path / "beat").touch()
        os.utime(tmp_path / "beat", (time.time() - age,) * 2)
    assert beat == "/tmp/heartbeat"
    python, *arguments = worker[probe]["exec"]["command"]
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "IMECE_HEARTBEAT_FILE": str(tmp_path / "beat")},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    assert (done.returncode == 0) == alive


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_setting_in_the_manifests_is_one(name: str, render: Render) -> None:
    settings = one(render(name), "ConfigMap", "imece")["data"]
    given = set(settings)
    for spec in pods(render(name)):
        given |= {entry["name"] for entry in spec["containers"][0].get("env", [])}
    given = {key for key in given if key.startswith(PREFIX)}
    assert {key.removeprefix(PREFIX).lower() for key in given} <= set(Settings.model_fields)
    values = {key.removeprefix(PREFIX).lower(): value for key, value in settings.items()}
    assert Settings(**values).queue == "imece"


def test_a_changed_setting_reaches_the_workers(yours: "Yours") -> None:
    """By a rollout: the name of the map is another one."""
    before = yours.render()
    after = yours.render(settings={"IMECE_FILE_TIMEOUT": "60"})
    maps = [
        pod(manifests, "imece-worker")["containers"][0]["envFrom"][0]["configMapRef"]["name"]
        for manifests in (before, after)
    ]
    assert maps[0] != maps[1]
    assert one(after, "ConfigMap", "imece")["metadata"]["name"] == maps[1]


def test_a_changed_limit_restarts_no_worker(yours: "Yours") -> None:
    before, after = yours.render(), yours.render(values={"MAX_REPLICAS": "50"})
    assert pod(before, "imece-worker") == pod(after, "imece-worker")
    assert one(after, "ScaledObject", "imece-worker")["spec"]["maxReplicaCount"] == 50


# Each thing in one place


class Yours:
    """An overlay as a user makes one, beside the others."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(DEPLOY, folder / "deploy")
        self.directory = folder / "deploy" / "overlays" / "yours"
        self.directory.mkdir()

    def render(
        self,
        platform: str = "plain",
        namespace: str = "imece",
        settings: dict[str, str] | None = None,
        values: dict[str, str] | None = None,
    ) -> list[Manifest]:
        lines = ["namespace: " + namespace, f"resources: [../{platform}]", "configMapGenerator:"]
        for name, literals in (("imece", settings), ("values", values)):
            given = [f"{key}={value}" for key, value in (literals or {"UNUSED": "1"}).items()]
            lines.append(f"  - {{name: {name}, behavior: merge, literals: {given}}}")
        lines.append("transformers: [../../redis/wiring, ../../wiring]")
        (self.directory / "kustomization.yaml").write_text("\n".join(lines))
        return rendered(self.directory)


@pytest.fixture
def yours(tmp_path: Path) -> Yours:
    return Yours(tmp_path)


def keys_counted(manifests: list[Manifest]) -> list[str]:
    triggers = one(manifests, "ScaledObject", "imece-worker")["spec"]["triggers"]
    return [trigger["metadata"]["listName"] for trigger in triggers]


def keys_used(manifests: list[Manifest]) -> list[str]:
    """The keys of the queue that workers with these settings listen to."""
    data = one(manifests, "ConfigMap", "imece")["data"]
    queue = Settings(queue=data["IMECE_QUEUE"]).queue
    return [keys.pending(queue), keys.moving(queue), keys.leases(queue)]


@pytest.mark.parametrize("name", ["base", *OVERLAYS])
def test_keda_counts_the_keys_that_the_workers_use(name: str, render: Render) -> None:
    assert keys_counted(render(name)) == keys_used(render(name))


@pytest.mark.parametrize("platform", ["plain", "openshift", "example"])
def test_another_queue_is_another_one_for_keda_too(platform: str, yours: Yours) -> None:
    manifests = yours.render(platform, settings={"IMECE_QUEUE": "night-2_B"})
    assert keys_counted(manifests)[0] == "rq:queue:night-2_B"
    assert keys_counted(manifests) == keys_used(manifests)
    redis = one(manifests, "StatefulSet", "imece-redis")["spec"]["template"]["spec"]
    assert {"name": "QUEUE", "value": "night-2_B"} in redis["containers"][0]["env"]


def test_another_namespace_is_one_everywhere(yours: Yours) -> None:
    manifests = yours.render(namespace="team-b")
    namespaces = {manifest["metadata"].get("namespace") for manifest in manifests}
    assert namespaces == {"team-b", None}  # None: the namespace itself
    assert one(manifests, "Namespace", "team-b")
    assert addresses(manifests) == {"imece-redis.team-b.svc:6379"}
    url = one(manifests, "ConfigMap", "imece")["data"]["IMECE_REDIS_URL"]
    assert url == "redis://imece-redis.team-b.svc:6379/0"


def addresses(manifests: list[Manifest]) -> set[str]:
    triggers = one(manifests, "ScaledObject", "imece-worker")["spec"]["triggers"]
    return {trigger["metadata"]["address"] for trigger in triggers}


@pytest.mark.parametrize("platform", ["plain", "openshift"])
def test_a_redis_of_ones_own_is_kedas_too(platform: str, yours: Yours) -> None:
    """As docs/how-to/own-redis.md says: without deploy/redis and its wiring."""
    (without_redis,) = blocks_of_code(ROOT / "docs" / "how-to" / "own-redis.md", "yaml")
    (yours.directory / "kustomization.yaml").write_text(
        "namespace: imece\n"
        f"resources: [../{platform}]\n"
        f"patches:\n{without_redis.rstrip(' ')}"
        "configMapGenerator:\n"
        "  - {name: imece, behavior: merge, literals: ["
        "IMECE_REDIS_URL=redis://redis.example.com:6380/3]}\n"
        "transformers: [../../wiring]\n"
    )
    manifests = rendered(yours.directory)
    assert addresses(manifests) == {"redis.example.com:6380"}
    triggers = one(manifests, "ScaledObject", "imece-worker")["spec"]["triggers"]
    assert {trigger["metadata"]["databaseIndex"] for trigger in triggers} == {"3"}
    assert len(list(pods(manifests))) == 2
    for spec in pods(manifests):  # what the platform needs is kept
        assert ("fsGroup" in spec["securityContext"]) == (platform == "plain")


def test_the_limits_of_a_worker_are_set_once(yours: Yours) -> None:
    manifests = yours.render(values={"CPU": "3", "MEMORY": "7Gi"})
    (worker,) = pod(manifests, "imece-worker")["containers"]
    assert worker["resources"]["requests"] == {"cpu": "3", "memory": "7Gi"}
    assert worker["resources"]["limits"] == {"cpu": "3", "memory": "7Gi"}


def test_the_five_things_are_in_one_file(render: Render) -> None:
    directory = DEPLOY / "overlays" / "example"
    assert [path.name for path in directory.iterdir()] == ["kustomization.yaml"]
    text = (directory / "kustomization.yaml").read_text()
    manifests = render("overlays/example")
    for name in ("imece-worker", "imece-producer"):
        spec = pod(manifests, name)
        (container,) = spec["containers"]
        image, _, tag = container["image"].rpartition(":")
        assert f"newName: {image}\n" in text
        assert f'newTag: "{tag}"\n' in text
        claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in spec["volumes"]}
        assert claims["input"] == claims["output"] == {"claimName": "scans"}
        places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert (places["input"], places["output"]) == ("/data/incoming", "/data/metrics")
    assert one(manifests, "ConfigMap", "imece")["data"]["IMECE_PROCESSOR"] == "metrics:measure"
    for value in ("CLAIM=scans", "INPUT=/data/incoming", "OUTPUT=/data/metrics"):
        assert text.count(value) == 1
    # What was there before is neither made nor deleted with the rest.
    assert not {"Namespace", "PersistentVolumeClaim"} & {item["kind"] for item in manifests}


@pytest.mark.parametrize("platform", ["plain", "openshift"])
def test_the_example_stands_on_either_platform(platform: str, yours: Yours) -> None:
    """As docs/how-to/cluster.md says: by another name in its `resources`, and nothing else."""
    text = (DEPLOY / "overlays" / "example" / "kustomization.yaml").read_text()
    assert "  - ../plain #" in text
    changed = text.replace("  - ../plain #", f"  - ../{platform} #")
    (yours.directory / "kustomization.yaml").write_text(changed)
    manifests = rendered(yours.directory)
    assert {manifest["metadata"]["namespace"] for manifest in manifests} == {"team-a"}
    assert not {"Namespace", "PersistentVolumeClaim"} & {item["kind"] for item in manifests}


def blocks_of_code(file: Path, language: str) -> list[str]:
    """The blocks of code of a page."""
    return re.findall(rf"```{language}\n(.*?)```", file.read_text(), re.DOTALL)


def test_the_patches_in_the_docs_fit_the_example(yours: Yours) -> None:
    text = (DEPLOY / "overlays" / "example" / "kustomization.yaml").read_text()
    patches = "".join(blocks_of_code(ROOT / "docs" / "how-to" / "cluster.md", "yaml"))
    assert patches.count("- patch:") == 5
    changed = text.replace("patches:\n", f"patches:\n{patches}").replace(
        "IMECE_PROCESSOR=metrics:measure", "IMECE_COMMAND=tool --in {input} --out {output}"
    )
    (yours.directory / "kustomization.yaml").write_text(changed)
    manifests = rendered(yours.directory)
    data = one(manifests, "ConfigMap", "imece")["data"]
    assert data["IMECE_COMMAND"] == "tool --in {input} --out {output}"
    assert "IMECE_PROCESSOR" not in data
    for name in ("imece-worker", "imece-producer"):
        account = one(manifests, "ServiceAccount", name)
        assert account["imagePullSecrets"] == [{"name": "my-registry"}]
    # Workers without a token and without a right.
    account = one(manifests, "ServiceAccount", "imece-worker")
    assert account["automountServiceAccountToken"] is False
    roles = {item["metadata"]["name"] for item in manifests if item["kind"].startswith("Role")}
    assert roles == {"imece-producer", "imece-ask-keda"}


def test_the_claim_is_one_that_all_nodes_can_write_to(render: Render) -> None:
    for name in ("overlays/plain", "overlays/openshift"):
        claim = one(render(name), "PersistentVolumeClaim", "imece-data")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        volumes = pod(render(name), "imece-worker")["volumes"]
        names = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes
            if "persistentVolumeClaim" in volume
        ]
        assert names == ["imece-data", "imece-data"]


# Redis


PASSWORDS = {"imece": "a" * 32, "keda": "b" * 32, "imece-scans": "c" * 32, "keda-scans": "d" * 32}
"""Of the users of two pipelines: the first one, and scans."""


class Started:
    """deploy/redis/start.sh, run with the server of the tests."""

    def __init__(self, folder: Path, passwords: dict[str, str], queue: str = "imece") -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        for name in ("bin", "config", "secrets", "data"):
            (folder / name).mkdir(parents=True)
        (folder / "bin" / "valkey-server").symlink_to(program())
        for user, password in passwords.items():
            name, dash, pipeline = user.partition("-")
            file = f"{name.upper()}_REDIS_PASSWORD{'_' if dash else ''}{pipeline}"
            (folder / "secrets" / file).write_text(password)
        lines = (DEPLOY / "redis" / "redis.conf").read_text()
        assert "dir /data\n" in lines
        lines = lines.replace("dir /data\n", f"dir {folder / 'data'}\n")
        (folder / "config" / "redis.conf").write_text(lines)
        self.errors = (folder / "errors").open("w+")
        self.clients: list[Redis] = []
        self.process = subprocess.Popen(
            ["sh", DEPLOY / "redis" / "start.sh", "--port", "0", "--unixsocket", self.socket],
            env={
                "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
                "SECRETS_DIR": str(folder / "secrets"),
                "CONFIG_DIR": str(folder / "config"),
                "USERS_FILE": str(folder / "users.acl"),
                "MEMORY_LIMIT": str(400 * 2**20),
                "QUEUE": queue,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
        )

    def client(self, user: str | None = None) -> Redis:
        self.clients.append(
            Redis(
                unix_socket_path=str(self.socket),
                username=user,
                password=PASSWORDS[user] if user else None,
            )
        )
        return self.clients[-1]

    def ended(self) -> int:
        """Waits for its end; the exit code."""
        for client in self.clients:
            client.close()
        self.errors.close()
        return self.process.wait(10)

    def settings(self, user: str = "imece") -> dict[str, str]:
        return {
            "redis_url": f"unix://{self.socket}",
            "redis_username": user,
            "redis_password": PASSWORDS[user],
        }


@pytest.fixture
def started(server: Server, request: pytest.FixtureRequest) -> Iterator[Started]:
    queue = getattr(request, "param", "imece")
    # In the server's directory of sockets: a socket's path may have 107 bytes only.
    running = Started(server.socket.parent / "cluster", PASSWORDS, queue)
    until(running.socket.exists, "Redis to start")
    yield running
    running.process.terminate()
    assert running.ended() == 0


@pytest.fixture
def bench(started: Started, server: Server, tmp_path: Path) -> Iterator[Workbench]:
    """A workbench whose producers and workers are the ACL's user imece."""
    made = Workbench(server, started.client("imece"), tmp_path)
    made.settings |= started.settings()
    yield made
    made.close()


@pytest.mark.parametrize(
    "passwords", [{"imece": "change-me", "keda": "x"}, {"imece": "x", "keda": ""}, None]
)
def test_redis_does_not_start_with_the_committed_passwords(
    passwords: dict[str, str] | None, server: Server, render: Render
) -> None:
    if passwords is None:
        secret = one(render("overlays/plain"), "Secret", "imece-redis")["data"]
        passwords = {
            key.removesuffix("_REDIS_PASSWORD").lower(): base64.b64decode(value).decode()
            for key, value in secret.items()
        }
        assert set(passwords) == {"imece", "keda"}
    refused = Started(server.socket.parent / "cluster", passwords)
    assert refused.ended() == 2
    assert "deploy/redis/passwords.env" in (refused.folder / "errors").read_text()
    assert not (refused.folder / "users.acl").exists()


def test_redis_keeps_everything_and_says_when_it_is_full(started: Started, server: Server) -> None:
    admin = started.client("imece")
    memory, persistence = admin.info("memory"), admin.info("persistence")
    assert memory["maxmemory_policy"] == "noeviction"
    assert memory["maxmemory"] == 300 * 2**20
    assert persistence["aof_enabled"] == 1


def test_no_password_is_in_a_file_or_an_argument(started: Started) -> None:
    users = (started.folder / "users.acl").read_text()
    arguments = Path(f"/proc/{started.process.pid}/cmdline")
    shown = users + (arguments.read_text() if arguments.exists() else "")
    assert not any(password in shown for password in PASSWORDS.values())
    assert (started.folder / "users.acl").stat().st_mode & 0o077 == 0


def test_nobody_gets_in_without_a_password(started: Started) -> None:
    with pytest.raises(AuthenticationError):
        started.client().ping()


@pytest.mark.parametrize(
    "command",
    ["GET imece:imece:runs", "KEYS *", "LRANGE rq:queue:imece 0 -1", "DEL rq:queue:imece", "INFO",
     "LLEN imece:imece:runs", "CONFIG GET *", "PUBLISH rq:pubsub:x y"],
)  # fmt: skip
def test_the_scaler_can_count_and_nothing_else(command: str, started: Started) -> None:
    assert started.client("keda").llen("rq:queue:imece") == 0
    with pytest.raises(NoPermissionError):
        started.client("keda").execute_command(*command.split())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "CONFIG GET *", "SHUTDOWN", "SET other 1", "ACL LIST", "KEYS *",
     "CLIENT KILL TYPE normal", "MONITOR", "PUBLISH other y"],
)  # fmt: skip
def test_workers_cannot_touch_what_is_not_imeces(command: str, started: Started) -> None:
    with pytest.raises(NoPermissionError):
        started.client("imece").execute_command(*command.split())  # type: ignore[no-untyped-call]


OF_SCANS = [
    *(
        "HGETALL imece:scans:run:run",
        "HGET imece:scans:run:run state",
        "ZRANGE imece:scans:runs 0 -1",
    ),
    *("DEL imece:scans:run:run", "HSET imece:scans:run:run state done", "GET imece:scans:sweeper"),
    *("LRANGE rq:queue:scans 0 -1", "LPOP rq:queue:scans", "DEL rq:queue:scans:intermediate"),
    *("ZRANGE rq:wip:scans 0 -1", "ZADD rq:wip:scans 1 a", "SMEMBERS rq:workers:scans"),
    *("HGETALL rq:worker:scans.a", "DEL rq:worker:scans.a", "PUBLISH rq:pubsub:scans.a x"),
    *("RENAME imece:imece:x rq:queue:scans", "COPY imece:scans:runs imece:imece:runs"),
    "EVAL return(redis.call('HGETALL','imece:scans:run:run')) 0",
    "EVAL return(redis.call('LPUSH','rq:queue:scans','x')) 0",
]
"""What another pipeline's user would do to the pipeline scans."""


def test_two_pipelines_share_a_redis_and_nothing_in_it(
    started: Started, bench: Workbench, server: Server, tmp_path: Path
) -> None:
    """Both have a run "run", which ends under the rights that start.sh gives their users."""
    (tmp_path / "scans").mkdir()
    scans = Workbench(server, started.client("imece-scans"), tmp_path / "scans")
    scans.settings |= {**started.settings("imece-scans"), "queue": "scans"}
    try:
        for each, files in ((bench, 3), (scans, 5)):
            each.settings["processor"] = "tests.processors:by_content"
            each.files(files)
            each.enqueue()
        assert started.client("keda-scans").llen("rq:queue:scans") > 0
        for user in ("imece", "keda"):
            for command in OF_SCANS:
                with pytest.raises((NoPermissionError, ResponseError), match="ermission"):
                    started.client(user).execute_command(*command.split())  # type: ignore[no-untyped-call]
        for each in (bench, scans):
            each.worker()
        assert (bench.ended().done, scans.ended().done) == (3, 5)
        assert "run " in scans.imece("runs").stdout
        assert scans.imece("doctor").stdout.count("ok    redis rights") == 1
        assert bench.imece("delete", "run").returncode == 0
        assert scans.status().state == "done"
        assert scans.check_books().done == 5
    finally:
        scans.close()


@pytest.mark.parametrize(
    "wrong", [{"imece-scans": ""}, {"imece-scans": "x"}, {"imece-SCANS": "x", "keda-SCANS": "x"}]
)
def test_a_pipeline_without_good_passwords_keeps_no_other_from_starting(
    wrong: dict[str, str], server: Server
) -> None:
    first = {user: PASSWORDS[user] for user in ("imece", "keda")}
    running = Started(server.socket.parent / "cluster", first | wrong)
    until(running.socket.exists, "Redis to start")
    assert running.client("imece").ping()
    users = (running.folder / "users.acl").read_text()
    assert re.findall(r"^user (\S+)", users, re.MULTILINE) == ["default", "imece", "keda"]
    (name,) = {user.partition("-")[2] for user in wrong}
    assert f"the pipeline {name} gets no users" in (running.folder / "errors").read_text()
    running.process.terminate()
    assert running.ended() == 0


def test_the_users_have_the_keys_of_one_queue(started: Started) -> None:
    """Those that `imece doctor` names, too."""
    users = (started.folder / "users.acl").read_text()
    for user, queue in (("imece", "imece"), ("imece-scans", "scans")):
        (rules,) = re.findall(rf"^user {user} (.*)$", users, re.MULTILINE)
        places = {rule for rule in rules.split() if rule[0] in "~&"}
        assert places == set(keys.rights(queue))
        (rules,) = re.findall(
            rf"^user {user.replace('imece', 'keda', 1)} (.*)$", users, re.MULTILINE
        )
        counted = (keys.pending(queue), keys.moving(queue), keys.leases(queue))
        assert {rule for rule in rules.split() if rule[0] in "~&"} == {f"~{key}" for key in counted}


def jobs_in_hand(worker: WorkerProcess) -> int:
    return worker.log().count("job taken") - worker.log().count("job finished")


def test_producers_and_workers_may_do_all_they_do(bench: Workbench) -> None:
    """A killed worker, a cancelled run, a failed one and its retry: every script is run."""
    bench.settings["processor"] = "tests.processors:by_content"
    for number in range(8):
        bench.file(f"ok-{number}", "copy")
    bench.file("long", "sleep 1000")
    bench.enqueue(files_per_job=1, buckets=9)
    first, second = bench.worker().started(), bench.worker().started()
    until(lambda: bench.status().done == 8, "all but one file")
    # The other's process may live on for a moment: it is asked whose job has not ended.
    until(lambda: jobs_in_hand(first) + jobs_in_hand(second) == 1, "one job to be in hand")
    busy = first if jobs_in_hand(first) else second
    bench.file("long", "raise")
    busy.kill()
    assert bench.ended().failed == 1
    for command in (
        ["status", "run"], ["runs"], ["failures", "run"], ["retry", "run"], ["wait", "run"],
        ["enqueue", str(bench.source), str(bench.folder / "again"), "--run-id", "again"],
        ["wait", "again"], ["delete", "again"],
    ):  # fmt: skip
        done = bench.imece(*command)
        assert done.returncode in (0, 1), f"{command}: {done.stderr}"
        assert "forbids" not in done.stderr
    for worker in bench.workers:
        assert "NOPERM" not in worker.log()
        assert "refused" not in worker.log()


COUNT = """
local kind = redis.call('TYPE', KEYS[1]).ok
return redis.call(kind == 'zset' and 'ZCARD' or 'LLEN', KEYS[1])
"""
"""What KEDA asks: the length of a list or a sorted set (pkg/scalers/redis_scaler.go, 2.20)."""


def needed(manifests: list[Manifest], started: Started) -> int:
    """The workers KEDA would want: the formula over what each trigger counts, as its own user."""
    scaled = one(manifests, "ScaledObject", "imece-worker")["spec"]
    counts: dict[str, Any] = {}
    for trigger in scaled["triggers"]:
        client = started.client(trigger["metadata"]["username"])
        counts[trigger["name"]] = client.eval(COUNT, 1, trigger["metadata"]["listName"])
    terms = scaled["advanced"]["scalingModifiers"]["formula"].split(" + ")
    return sum(counts[term] for term in terms)


@pytest.mark.parametrize("started", ["other"], indirect=True)
def test_the_scaler_sees_a_job_wherever_it_is(
    bench: Workbench, started: Started, yours: Yours
) -> None:
    bench.settings |= {"queue": "other", "processor": "tests.processors:by_content"}
    manifests = yours.render(settings={"IMECE_QUEUE": "other"})
    assert needed(manifests, started) == 0
    for number in range(4):
        bench.file(f"long-{number}", "sleep 1000")
    bench.enqueue(files_per_job=1, buckets=4)
    jobs = bench.status().jobs_left
    assert needed(manifests, started) == jobs  # waiting

    bench.redis.lmove(keys.pending("other"), keys.moving("other"))
    assert needed(manifests, started) == jobs  # one on its way
    bench.redis.lmove(keys.moving("other"), keys.pending("other"))

    bench.worker().took()
    assert bench.redis.zcard(keys.leases("other")) == 1
    assert needed(manifests, started) == jobs  # one in hand
    bench.imece("cancel", "run")
    assert needed(manifests, started) == 1  # still in hand: its worker must not be taken
