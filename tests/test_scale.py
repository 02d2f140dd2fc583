"""`imece scale`, `pause`, `resume` and `status` on a cluster, as a user calls them.

The queue is a real one.
"""

import fcntl
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from imece.run.status import Backlog
from imece.settings import load
from imece_producer.cli import app
from imece_producer.cluster import scaling
from imece_producer.cluster.client import connect
from imece_producer.cluster.rights import ASK_KEDA
from tests.api_server import DEPLOYMENT, SCALED_OBJECT, ApiServer, deployment, pod, scaled_object
from tests.conftest import ROOT, Workbench

PAUSED_REPLICAS = "autoscaling.keda.sh/paused-replicas"
PAUSED_SCALE_IN = "autoscaling.keda.sh/paused-scale-in"


def told(workbench: Workbench, *arguments: str, **settings: str) -> tuple[str, str]:
    """What a command printed, and the note beside it. In this process: it is faster."""
    given = {f"IMECE_{name.upper()}": value for name, value in settings.items()}
    answer = CliRunner().invoke(app, arguments, env=workbench.environment() | given)
    assert answer.exit_code == 0, answer.output
    return answer.stdout, answer.stderr


def refused(workbench: Workbench, *arguments: str, code: int) -> str:
    """The one line a command says of why it did not, after where it is."""
    answer = workbench.imece(*arguments)
    assert (answer.returncode, answer.stdout) == (code, ""), answer.stderr
    return answer.stderr.splitlines()[-1]


def changed(workbench: Workbench, *arguments: str, **settings: str) -> tuple[Any, Any]:
    """What was and what is, for programs."""
    answer = json.loads(told(workbench, *arguments, "--json", **settings)[0])
    return answer["was"], answer["is"]


def replicas(cluster: ApiServer) -> int:
    """How many the Deployment is to have."""
    wanted: int = cluster.deployed["spec"]["replicas"]
    return wanted


def notes(cluster: ApiServer) -> dict[str, str]:
    """The ScaledObject's annotations."""
    found: dict[str, str] = cluster.scaled["metadata"].get("annotations", {})
    return found


@pytest.fixture
def queued(workbench: Workbench, cluster: ApiServer) -> Workbench:
    """Thirty bucket jobs wait for workers."""
    workbench.files(30)
    workbench.enqueue()
    return workbench


# scale


def test_scale_raises_the_limit_and_starts_at_once_what_the_queue_needs(
    queued: Workbench, cluster: ApiServer
) -> None:
    cluster.deploy(deployment(5, ready=3))
    output, note = told(queued, "scale", "50")
    assert output == (
        "it was 3 workers ready, 5 wanted, limit 20\nit is  3 workers ready, 30 wanted, limit 50\n"
    )
    assert f"namespace imece of {cluster.url}, by the context village" in note
    assert cluster.scaled["spec"]["maxReplicaCount"] == 50
    assert replicas(cluster) == 30
    # The limit first: else the autoscaler would take the new workers for too many.
    assert cluster.patched() == [SCALED_OBJECT, f"{DEPLOYMENT}/scale"]


def test_who_has_changed_the_limit_is_said_to_the_cluster(
    queued: Workbench, cluster: ApiServer
) -> None:
    """`helm upgrade` names it, where somebody has changed what the chart sets."""
    told(queued, "scale", "30")
    fields = cluster.scaled["metadata"]["managedFields"]
    assert "imece" in {one["manager"] for one in fields}


def test_scale_starts_no_more_than_the_limit(queued: Workbench, cluster: ApiServer) -> None:
    was, now = changed(queued, "scale", "7")
    assert (was["limit"], was["wanted"]) == (20, 0)
    assert (now["limit"], now["wanted"]) == (7, 7)
    assert replicas(cluster) == 7


def test_scale_never_stops_a_worker(queued: Workbench, cluster: ApiServer) -> None:
    cluster.deploy(deployment(12))
    changed(queued, "scale", "3")
    assert cluster.scaled["spec"]["maxReplicaCount"] == 3
    assert replicas(cluster) == 12
    assert cluster.patched() == [SCALED_OBJECT]


def test_scale_starts_nothing_for_an_empty_queue(workbench: Workbench, cluster: ApiServer) -> None:
    changed(workbench, "scale", "50")
    assert replicas(cluster) == 0


def test_a_minimum_is_kept_even_with_nothing_to_do(
    workbench: Workbench, cluster: ApiServer
) -> None:
    was, now = changed(workbench, "scale", "50", "--min", "2")
    assert (was["minimum"], now["minimum"], now["wanted"]) == (0, 2, 2)
    assert cluster.scaled["spec"]["minReplicaCount"] == 2


def test_a_limit_below_the_minimum_lowers_it(workbench: Workbench, cluster: ApiServer) -> None:
    cluster.deploy(scaled=scaled_object(minReplicaCount=5))
    was, now = changed(workbench, "scale", "3")
    assert (was["minimum"], now["minimum"]) == (5, 3)
    was, now = changed(workbench, "scale", "9")
    assert (was["minimum"], now["minimum"]) == (3, 3)


@pytest.mark.parametrize(
    "annotation",
    [PAUSED_REPLICAS, "autoscaling.keda.sh/paused", "autoscaling.keda.sh/paused-scale-out"],
)
def test_scale_starts_nothing_while_paused(
    annotation: str, queued: Workbench, cluster: ApiServer
) -> None:
    cluster.annotate({annotation: "true"})
    _, now = changed(queued, "scale", "50")
    assert now["paused"]
    assert now["limit"] == 50
    assert replicas(cluster) == 0


def test_an_annotation_that_says_false_is_no_pause(queued: Workbench, cluster: ApiServer) -> None:
    cluster.annotate({"autoscaling.keda.sh/paused": "false"})
    _, now = changed(queued, "scale", "50")
    assert (now["paused"], replicas(cluster)) == (None, 30)


def test_scale_needs_no_redis(queued: Workbench, cluster: ApiServer) -> None:
    output, note = told(queued, "scale", "50", redis_url="unix:///nowhere/redis.sock")
    assert "it is  0 workers ready, 0 wanted, limit 50" in output
    assert "(what the queue needs is left to KEDA: Redis at unix:///nowhere" in note
    assert cluster.scaled["spec"]["maxReplicaCount"] == 50


def test_an_autoscaler_that_is_faster_is_not_undone(
    cluster: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our look and our change it has set more, and then something else has changed."""
    cluster.deploy(deployment(2))
    meanwhile: list[dict[str, Any]] = [{"status": {"replicas": 2}}, {"spec": {"replicas": 25}}]
    with connect(load()) as found:
        change = found.change_scale

        def change_late(changes: dict[str, Any]) -> dict[str, Any]:
            if meanwhile:
                cluster.change(DEPLOYMENT, meanwhile.pop())
            return change(changes)

        monkeypatch.setattr(found, "change_scale", change_late)
        _, after = scaling.change(found, 50, backlog=Backlog(10, 0, 0))
        assert (after.wanted, replicas(cluster)) == (25, 25)
        _, after = scaling.change(found, 50, backlog=Backlog(40, 0, 0))
        assert (after.wanted, replicas(cluster)) == (40, 40)


def test_numbers_that_no_cluster_takes(workbench: Workbench, cluster: ApiServer) -> None:
    assert "a cluster's limit is 1 at the least: `imece pause` holds the workers" in refused(
        workbench, "scale", "0", code=2
    )
    assert "--min 4 is more than the limit 3" in refused(
        workbench, "scale", "3", "--min", "4", code=2
    )
    assert cluster.patched() == []


@pytest.mark.parametrize("status", [403, 422])
def test_a_change_that_is_refused_is_told_in_the_clusters_words(
    status: int, workbench: Workbench, cluster: ApiServer
) -> None:
    """Admission denies with 403, too. It is no lack of a right."""
    cluster.deny_changes(status, "no more than 40 here")
    assert "denied request: no more than 40 here): fix what it says" in refused(
        workbench, "scale", "50", code=3
    )


def test_a_local_run_that_is_on_is_meant_first(workbench: Workbench, cluster: ApiServer) -> None:
    """But not where a cluster is named; `--run` always means a local run."""
    state = workbench.folder / "state" / "here"
    state.mkdir(parents=True)
    (state / "server.url").write_text(workbench.server.url)
    lock = (state / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        workbench.redis.set("imece:local:max-replicas", 2)
        assert told(workbench, "scale", "4") == ("run here: at most 4 replicas (it was 2)\n", "")
        was, now = changed(workbench, "scale", "5", "--run", "here", kube_namespace="imece")
        assert (was, now) == ({"limit": 4}, {"limit": 5})
        assert "--min, --context, --namespace and --pipeline are for a cluster" in refused(
            workbench, "scale", "5", "--run", "here", "-n", "imece", code=2
        )
        assert cluster.asked == []
        for way in ({"kube_namespace": "imece"}, {"kube_context": "village"}):
            assert changed(workbench, "scale", "6", **way)[1]["limit"] == 6
        told(workbench, "scale", "7", "--namespace", "imece")
        assert cluster.scaled["spec"]["maxReplicaCount"] == 7
    _, note = told(workbench, "scale", "8")
    assert "(no local run is on: this is for a cluster)" in note


# pause, resume


def test_pause_holds_the_workers_until_resume(workbench: Workbench, cluster: ApiServer) -> None:
    cluster.annotate({"theirs": "stays"})
    was, now = changed(workbench, "pause")
    assert (was["paused"], now["paused"]) == (None, "held at 0 replicas")
    assert notes(cluster) == {"theirs": "stays", PAUSED_REPLICAS: "0"}
    was, now = changed(workbench, "resume")
    assert (was["paused"], now["paused"]) == ("held at 0 replicas", None)
    assert notes(cluster) == {"theirs": "stays"}


def test_pause_may_only_keep_workers_from_being_stopped(
    workbench: Workbench, cluster: ApiServer
) -> None:
    output, note = told(workbench, "pause", "--scale-in")
    assert output.endswith("limit 20, paused: no scaling in\n")
    assert notes(cluster) == {PAUSED_SCALE_IN: "true"}
    assert "takes no notice" not in note
    told(workbench, "resume")
    assert notes(cluster) == {}


def test_an_old_keda_that_cannot_pause_scaling_in_is_told_of(
    workbench: Workbench, cluster: ApiServer
) -> None:
    cluster.set_keda_version("2.17.3")
    assert "(KEDA 2.17.3 takes no notice of it" in told(workbench, "pause", "--scale-in")[1]


def test_resume_ends_every_pause_and_does_nothing_where_there_is_none(
    workbench: Workbench, cluster: ApiServer
) -> None:
    names = ("paused", "paused-replicas", "paused-scale-in", "paused-scale-out")
    every = {f"autoscaling.keda.sh/{name}": "true" for name in names}
    cluster.annotate(every)
    assert changed(workbench, "resume")[1]["paused"] is None
    assert notes(cluster) == {}
    assert changed(workbench, "resume")[1]["paused"] is None


# status


def test_status_asks_no_cluster_that_nothing_names(queued: Workbench, cluster: ApiServer) -> None:
    output, note = told(queued, "status")
    assert "  cluster  " not in output
    assert "cluster" not in json.loads(told(queued, "status", "--json")[0])
    assert (cluster.asked, note) == ([], "")


def test_status_answers_at_once_without_a_cluster(queued: Workbench) -> None:
    """Not by the clock, which is another one on each machine: the slow package is not imported."""
    environment = os.environ | queued.environment() | {"PYTHONPROFILEIMPORTTIME": "1"}
    answer = subprocess.run(  # a new process: a forked one has imported more (tests/forks.py)
        [sys.executable, "-m", "imece_producer", "status"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert "imece.run.status" in imported
    assert not {"kubernetes", "imece_producer.cluster.client", "urllib3"} & imported


def test_status_says_how_many_workers_there_are(queued: Workbench, cluster: ApiServer) -> None:
    cluster.deploy(deployment(5, ready=3))
    lines = told(queued, "status", "--namespace", "imece")[0].splitlines()
    assert lines[-2] == "  cluster  3 workers ready, 5 wanted, limit 20"
    assert lines[-1].strip().startswith(f"namespace imece of {cluster.url}, by the context")
    found = json.loads(told(queued, "status", "--json", kube_context="village")[0])["cluster"]
    assert (found["ready"], found["wanted"], found["limit"]) == (3, 5, 20)
    assert found["reasons"] == []


def test_status_says_what_holds_the_workers_up(queued: Workbench, cluster: ApiServer) -> None:
    cluster.deploy(deployment(1))
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    cluster.add_pods(
        pod(
            phase="Pending", containerStatuses=[{"image": "imece:x", "state": {"waiting": waiting}}]
        )
    )
    reason = (
        "1 worker pod: the image imece:x cannot be pulled: no such image: correct its name and "
        "tag, or give the ServiceAccount an imagePullSecret: "
        "`kubectl -n imece describe pod imece-worker-1`"
    )
    output, _ = told(queued, "status", "-n", "imece")
    assert output.endswith(f"\n  held up  {reason}\n")
    found = json.loads(told(queued, "status", "-n", "imece", "--json")[0])["cluster"]
    assert found["reasons"] == [reason]


def test_status_says_what_the_cluster_says_without_redis(
    workbench: Workbench, cluster: ApiServer
) -> None:
    """As from a laptop: Redis' Service has no address outside the cluster."""
    away = "redis://127.0.0.1:1/0"
    cluster.annotate({PAUSED_REPLICAS: "0"})
    answer = workbench.imece("status", "-n", "imece", redis_url=away)
    assert answer.returncode == 3
    assert "workers ready" in answer.stdout
    assert "held up  paused" in answer.stdout
    assert "127.0.0.1:1" in answer.stderr
    answer = workbench.imece("status", "-n", "imece", "--json", redis_url=away)
    assert json.loads(answer.stdout)["cluster"]["paused"] == "held at 0 replicas"


def test_a_run_that_has_ended_is_not_held_up(queued: Workbench, cluster: ApiServer) -> None:
    cluster.annotate({PAUSED_REPLICAS: "0"})
    assert "held up  paused" in told(queued, "status", "-n", "imece")[0]
    queued.imece("cancel", "run")
    cluster.forget()
    output, _ = told(queued, "status", "-n", "imece")
    assert "paused: held at 0 replicas" in output
    assert "held up" not in output
    assert len(cluster.asked) == 2  # the ScaledObject and the Deployment: no reason is looked for


def test_a_cluster_that_bars_us_does_not_hide_the_run(
    queued: Workbench, cluster: ApiServer
) -> None:
    cluster.forbid("get scaledobjects.keda.sh")
    output, note = told(queued, "status", "-n", "imece")
    assert output.startswith("run run: queued\n")
    assert "  cluster  no right to get scaledobjects.keda.sh in namespace imece" in output
    assert note == ""


def test_workers_that_are_not_started_yet(queued: Workbench, cluster: ApiServer) -> None:
    cluster.keda.counted = "3"
    assert "and has started no worker yet" in told(queued, "status", "-n", "imece")[0]
    cluster.keda.counted = "0"
    assert "KEDA counts no bucket jobs, and" in told(queued, "status", "-n", "imece")[0]
    cluster.forbid(str(ASK_KEDA))
    assert "KEDA has started no worker yet" in told(queued, "status", "-n", "imece")[0]
    cluster.deploy(deployment(1))
    assert "held up" not in told(queued, "status", "-n", "imece")[0]


def test_watching_ends_with_the_cluster_too(queued: Workbench, cluster: ApiServer) -> None:
    queued.worker()
    queued.ended()
    assert "  cluster  " in told(queued, "status", "--watch", "-n", "imece")[0]
