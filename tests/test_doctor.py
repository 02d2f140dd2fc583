"""`imece doctor`: each thing a first-time user trips over is found, with its fix.

Against real servers.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from imece.settings import load
from imece_producer.cluster.rights import ASK_KEDA, RIGHTS
from imece_producer.doctor import redis as redis_checks
from imece_producer.doctor import report
from imece_producer.doctor.check import Check
from imece_producer.local.server import Server
from tests.api_server import (
    AUTOSCALER,
    GRANTED,
    SCALED_OBJECT,
    ApiServer,
    deployment,
    pod,
)
from tests.conftest import ROOT, Workbench
from tests.test_cluster import jwt
from tests.test_rights import acl

START = ROOT / "deploy/redis/start.sh"


@pytest.fixture
def sound(cluster: ApiServer, server: Server) -> Iterator[dict[str, Any]]:
    """Settings with which nothing is wrong: Redis, and a cluster that is named."""
    cluster.deploy(deployment(2, ready=2))
    cluster.add_claim("imece-data", "Bound")
    yield {"redis_url": server.url, "kube_namespace": "imece"}


def made(**settings: Any) -> dict[str, Check]:
    """All checks by their names; of several of a name, the last."""
    return {check.name: check for check in report.checks(load(**settings))}


def wrong(**settings: Any) -> dict[str, Check]:
    """Those that are not ok. Each must say what to do."""
    found = {name: check for name, check in made(**settings).items() if check.verdict != "ok"}
    for check in found.values():
        assert check.hint
        assert (check.exit_code > 0) == (check.verdict == "fail")
    return found


def only(name: str, **settings: Any) -> Check:
    """The one check that is not ok."""
    found = wrong(**settings)
    assert list(found) == [name]
    return found[name]


def test_where_all_is_well_it_says_so(sound: dict[str, Any], tmp_path: Path) -> None:
    found = made(
        **sound, processor="examples.metrics:measure", input=tmp_path, output=tmp_path / "new/out"
    )
    assert {check.verdict for check in found.values()} == {"ok"}
    assert list(found) == [
        *("redis", "redis rights", "redis version", "redis memory", "redis persistence"),
        *("redis clock", "cluster", "cluster clock", "cluster rights", "keda", "workers"),
        *("scaled object", "autoscaler", "claim", "pods", "processor", "input", "output"),
    ]
    assert "by the context village" in found["cluster"].says
    assert found["keda"].says == "version 2.20.0"
    assert found["claim"].says == "imece-data bound"
    assert not (tmp_path / "new").exists()


def test_the_command_prints_a_line_for_each_check_and_its_exit_code(
    workbench: Workbench, sound: dict[str, Any]
) -> None:
    for folder in (workbench.source, workbench.target):
        folder.mkdir(exist_ok=True)
    call = ["doctor", str(workbench.source), str(workbench.target), "-n", "imece"]
    answer = workbench.imece(*call)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert all(line.startswith("ok    ") for line in answer.stdout.splitlines())
    answer = workbench.imece(*call, "--json", processor="nowhere:nothing", redis_url="unix:///no")
    found = {check["name"]: check for check in map(json.loads, answer.stdout.splitlines())}
    assert found["redis"]["exit_code"] == 3
    assert found["processor"]["exit_code"] == 2
    assert found["cluster"]["verdict"] == "ok"
    assert answer.returncode == 3
    assert workbench.imece(*call, processor="nowhere:nothing").returncode == 2


# Redis


def test_a_redis_that_is_not_there() -> None:
    check = made(redis_url="unix:///nowhere/redis.sock")["redis"]
    assert (check.verdict, check.exit_code) == ("fail", 3)
    assert check.hint.startswith("start it, or correct IMECE_REDIS_URL")


@pytest.mark.parametrize(
    ("options", "name", "verdict", "says"),
    [
        (
            {"maxmemory-policy": "allkeys-lru", "maxmemory": "100mb"},
            "redis memory",
            "fail",
            "maxmemory-policy is allkeys-lru",
        ),
        ({"appendonly": "no"}, "redis persistence", "warn", "no append-only file"),
    ],
)
def test_a_redis_set_up_for_something_else(
    options: dict[str, str], name: str, verdict: str, says: str, tmp_path: Path
) -> None:
    with Server(tmp_path / "other", **options) as server:
        check = made(redis_url=server.url)[name]
    assert check.verdict == verdict
    assert check.says.startswith(says)


def test_an_old_redis() -> None:
    checks = {
        check.name: check for check in redis_checks._redis_server({"redis_version": "6.2.14"})
    }
    assert checks["redis version"].verdict == "fail"
    assert checks["redis version"].says == "Redis 6.2.14"


def test_an_acl_that_is_too_narrow_says_what_is_missing(tmp_path: Path) -> None:
    [as_in_deploy] = re.findall(r"^user imece\$2 on \$imece (.*)$", START.read_text(), re.MULTILINE)
    users = {
        "no-scripts": "~imece:* ~rq:* &* +@all -eval -evalsha",
        "no-rq": "~imece:* &* +@all",
        "no-channel": "~imece:* ~rq:* +@all",
        "no-subscribe": "~imece:* ~rq:* &* +@all -subscribe",
        "no-set": "~imece:* ~rq:* &* +@all -set",
        "exactly": " ".join(acl()),
        "as-in-deploy": as_in_deploy.replace("$1", "imece"),
    }
    with Server(tmp_path / "locked") as server:
        admin = Redis(unix_socket_path=str(server.socket))
        for name, rules in users.items():
            rule = ("ACL", "SETUSER", name, "on", ">secret", *rules.split())
            admin.execute_command(*rule)  # type: ignore[no-untyped-call]

        def rights(user: str) -> Check:
            found = made(redis_url=server.url, redis_username=user, redis_password="secret")
            return found["redis rights"]

        assert rights("as-in-deploy").verdict == "ok"
        assert rights("exactly").verdict == "ok"
        assert "may not EVALSHA on" in rights("no-scripts").says
        assert "may not SUBSCRIBE on" in rights("no-subscribe").says
        assert "may not SET on" in rights("no-set").says
        assert "LREM, SREM, ZREM" in rights("no-rq").says
        assert "may not SUBSCRIBE on" in rights("no-channel").says
        assert admin.dbsize() == 0  # and leaves nothing behind
        admin.close()


def test_a_redis_that_nothing_names_may_be_out_of_reach_of_a_laptop(
    sound: dict[str, Any],
) -> None:
    settings = load(**sound | {"redis_url": "unix:///nowhere/redis.sock"})
    [check] = (check for check in report.checks(settings) if check.verdict != "ok")
    assert (check.name, check.verdict, check.exit_code) == ("redis", "fail", 3)
    settings.model_fields_set.discard("redis_url")  # as if it were the default
    [check] = (check for check in report.checks(settings) if check.verdict != "ok")
    assert (check.name, check.verdict, check.exit_code) == ("redis", "warn", 0)


# The cluster


def test_a_laptop_without_a_cluster_is_warned_and_no_more(server: Server) -> None:
    check = only("cluster", redis_url=server.url)
    assert check.verdict == "warn"
    assert "no cluster configuration found" in check.says


def test_a_cluster_that_is_named_must_be_there(server: Server) -> None:
    check = only("cluster", redis_url=server.url, kube_namespace="imece")
    assert (check.verdict, check.exit_code) == ("fail", 2)


def test_a_cluster_that_nothing_names_is_looked_at_and_warned_of(
    server: Server, cluster: ApiServer
) -> None:
    cluster.remove_keda()
    check = only("keda", redis_url=server.url)
    assert (check.verdict, check.exit_code) == ("warn", 0)


def test_an_expired_token_is_seen_before_it_is_sent(
    sound: dict[str, Any], cluster: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = jwt(time.time() - 7200)
    file = cluster.kubeconfig(tmp_path / "stale", user={"token": token})
    monkeypatch.setenv("KUBECONFIG", str(file))
    check = only("cluster token", **sound)
    assert check.says.startswith("the token has expired 2 h 00 min ago")
    assert token not in str(check)
    assert cluster.asked == []


def test_missing_rights_are_listed(sound: dict[str, Any], cluster: ApiServer) -> None:
    cluster.forbid("patch deployments.apps/scale", "list events")
    check = only("cluster rights", **sound)
    assert check.says == (
        "no right in namespace imece to patch deployments.apps/scale, list events"
    )
    assert "imece-producer" in check.hint


def test_the_rights_of_the_role_in_deploy_are_enough(
    sound: dict[str, Any], cluster: ApiServer
) -> None:
    """Whether the Role has these is in test_cluster.py."""
    cluster.forbid(*GRANTED.difference(map(str, RIGHTS)))
    assert "deploy/ask-keda" in only("autoscaler", **sound).hint
    assert "which version is not to be seen" in made(**sound)["keda"].says


def test_no_keda(sound: dict[str, Any], cluster: ApiServer) -> None:
    cluster.remove_keda()
    check = only("keda", **sound)
    assert "KEDA is not installed" in check.says


def test_an_old_keda_is_warned_of(sound: dict[str, Any], cluster: ApiServer) -> None:
    cluster.set_keda_version("2.9.1")
    check = only("keda", **sound)
    assert (check.verdict, check.says) == ("warn", "version 2.9.1")


def test_triggers_that_count_another_queue(sound: dict[str, Any]) -> None:
    names = {"deployment": "imece-worker", "scaled_object": "imece-worker"}
    check = only("scaled object", **sound, **names, queue="other")
    assert "KEDA does not count rq:queue:other" in check.says


def test_a_pause_is_warned_of_and_not_taken_for_a_fault(
    sound: dict[str, Any], cluster: ApiServer
) -> None:
    cluster.annotate({"autoscaling.keda.sh/paused-replicas": "0"})
    cluster.delete(AUTOSCALER)  # KEDA removes it
    check = only("workers", **sound)
    assert (check.verdict, check.hint) == ("warn", "`imece resume`")


def test_an_autoscaler_that_does_not_scale(sound: dict[str, Any], cluster: ApiServer) -> None:
    scaling = {"type": "ScalingActive", "status": "False", "message": "no metrics"}

    def say(reason: str) -> None:
        conditions = [{**scaling, "reason": reason}]
        cluster.change(AUTOSCALER, {"status": {"conditions": conditions}})

    say("FailedGetExternalMetric")
    check = only("autoscaler", **sound)
    assert check.says == "the autoscaler keda-hpa-imece-worker does not scale: no metrics"
    say("ScalingDisabled")
    assert wrong(**sound) == {}
    cluster.delete(AUTOSCALER)
    assert "KEDA makes it" in only("autoscaler", **sound).hint


def test_a_keda_that_does_not_answer_is_seen_also_with_no_workers(
    sound: dict[str, Any], cluster: ApiServer
) -> None:
    cluster.deploy(deployment(0))
    cluster.add_claim("imece-data", "Bound")
    assert made(**sound)["autoscaler"].says == (
        "keda-hpa-imece-worker, at rest with no workers; KEDA answers it"
    )
    cluster.keda.failure = (503, "service unavailable")
    assert only("autoscaler", **sound).says == "KEDA's metrics server does not answer"


def test_a_keda_that_may_not_be_asked_is_warned_of(
    sound: dict[str, Any], cluster: ApiServer
) -> None:
    cluster.forbid(str(ASK_KEDA))
    check = only("autoscaler", **sound)
    assert check.verdict == "warn"
    assert "whether KEDA answers it cannot be seen from here: no right to list comp" in check.says
    assert "deploy/ask-keda" in check.hint


def test_jobs_that_keda_does_not_see(
    sound: dict[str, Any], cluster: ApiServer, workbench: Workbench
) -> None:
    cluster.deploy(deployment(0))
    cluster.add_claim("imece-data", "Bound")
    workbench.files(3)
    workbench.enqueue()
    check = only("autoscaler", **sound)
    assert check.says.startswith("KEDA counts no bucket jobs, and ")
    cluster.keda.counted = "3"
    assert only("autoscaler", **sound).verdict == "warn"  # it starts one in some seconds


def test_a_scaled_object_that_keda_has_not_finished_with(
    sound: dict[str, Any], cluster: ApiServer
) -> None:
    """As KEDA leaves it just after an apply."""
    conditions = cluster.scaled["status"]["conditions"]
    unknown = [{**condition, "status": "Unknown"} for condition in conditions]
    cluster.change(SCALED_OBJECT, {"status": {"conditions": unknown, "hpaName": None}})
    check = only("scaled object", **sound)
    assert (check.verdict, "Ready is Unknown" in check.says) == ("warn", True)


def test_a_claim_that_is_mounted_twice_is_named_once(
    sound: dict[str, Any], cluster: ApiServer
) -> None:
    cluster.mount("imece-data", "imece-data")
    assert made(**sound)["claim"].says == "imece-data bound"


def test_a_missing_claim_is_said_once(sound: dict[str, Any], cluster: ApiServer) -> None:
    cluster.mount("scans")
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": '0/4 nodes are available: persistentvolumeclaim "scans" not found. not found',
    }
    for component in ("worker", "producer"):
        waits = pod(
            component, "Pending", component=component, claims=("scans",), conditions=[unscheduled]
        )
        cluster.add_pods(waits)
    assert (
        only("claim", **sound).says == "there is no PersistentVolumeClaim scans in namespace imece"
    )


def test_a_claim_that_is_not_bound(sound: dict[str, Any], cluster: ApiServer) -> None:
    cluster.add_claim("other", "Lost")
    assert "the volume claim other is not bound (Lost)" in only("claim", **sound).says


def test_pods_that_do_not_start(sound: dict[str, Any], cluster: ApiServer) -> None:
    state = {"waiting": {"reason": "ErrImagePull", "message": "who are you"}}
    cluster.add_pods(pod(containerStatuses=[{"image": "x", "state": state}]))
    assert only("pods", **sound).says == "1 worker pod: the image x cannot be pulled: who are you"


@pytest.mark.parametrize(("offset", "way"), [(-90, "ahead of"), (90, "behind")])
def test_a_clock_that_is_wrong(
    offset: int, way: str, sound: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's, which is another than Redis' and the API server's."""
    clock = SimpleNamespace(time=lambda: time.time() + offset)
    for module in (report, redis_checks):
        monkeypatch.setattr(module, "time", clock)
    found = wrong(**sound)
    assert {check.verdict for check in found.values()} == {"warn"}
    assert f"Redis is 1 min 30 s {way} this machine" in found["redis clock"].says
    assert re.match(
        rf"the API server is 1 min (29|30|31) s {way} this machine", found["cluster clock"].says
    )


# What processes files, and where they are


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"processor": "examples.nothing:here"}, "importing examples.nothing failed"),
        ({"processor": "examples.metrics:nothing"}, "has no attribute 'nothing'"),
        ({"command": "no-such-program {input}"}, "there is no program no-such-program here"),
    ],
)
def test_a_processor_that_cannot_be_loaded(
    settings: dict[str, str], says: str, sound: dict[str, Any]
) -> None:
    check = only("processor", **sound, **settings)
    assert says in check.says
    assert check.exit_code == 2


def test_a_processor_whose_import_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PATIENCE", 1.0)
    [check] = report.of_processor(load(processor="sleeper:work"))
    assert "importing it takes more than 1.0 s" in check.says


def test_an_import_that_ends_the_process_is_no_end_of_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ender.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.chdir(tmp_path)
    [check] = report.of_processor(load(processor="ender:work"))
    assert check.verdict == "fail"
    assert check.says == (
        "IMECE_PROCESSOR=ender:work: importing ender failed: "
        "its process ended itself with exit code 7"
    )


def test_directories_that_are_not_there_or_are_no_directories(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    checks = list(report.of_directories(tmp_path / "gone", file))
    assert [check.verdict for check in checks] == ["fail", "fail"]
    assert "No such file or directory" in checks[0].says
    assert "Not a directory" in checks[1].says
