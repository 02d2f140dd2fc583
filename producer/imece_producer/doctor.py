"""Everything a first-time user trips over, looked at one by one, each with its fix.

The command line prints it; an Airflow task can ask the same before it starts.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from imece import names
from imece.errors import ImeceError
from imece.settings import Settings
from imece_producer.checks import Check, clock, failed
from imece_producer.cluster import diagnose, kubeconfig, scaling
from imece_producer.cluster.client import Cluster, ClusterError, connect
from imece_producer.cluster.rights import RIGHTS
from imece_producer.cluster.scaling import numbers
from imece_producer.duration import seconds
from imece_producer.redis_checks import of_redis

OLDEST_KEDA = (2, 20)

PATIENCE = 60.0
"""Seconds the import of a processor may take."""


def checks(
    settings: Settings, source: Path | None = None, target: Path | None = None
) -> Iterator[Check]:
    """All checks, each as soon as it is made. Raises nothing: what goes wrong is a check's word.

    What no setting names is looked at all the same, but what is wrong there is only a warning: the
    cluster of a laptop's kubeconfig, and a Redis here where a cluster is named.

    Args:
        source, target: a run's input and output directory; in place of those in the settings.
    """
    named = kubeconfig.is_named(settings)
    redis_is_elsewhere = named and "redis_url" not in settings.model_fields_set
    yield from softened(of_redis(settings), redis_is_elsewhere)
    yield from softened(of_cluster(settings), not named)
    yield from of_processor(settings)
    yield from of_directories(source or settings.input, target or settings.output)


def exit_code(made: list[Check]) -> int:
    """0 if nothing failed, else the exit code of the worst failure."""
    return max((check.exit_code for check in made), default=0)


def softened(made: Iterator[Check], soften: bool) -> Iterator[Check]:
    """With failures as warnings: what is wrong there may not be what is meant."""
    for check in made:
        may_be_meant = soften and check.verdict == "fail"
        yield replace(check, verdict="warn", exit_code=0) if may_be_meant else check


# Redis


# The cluster


def of_cluster(settings: Settings) -> Iterator[Check]:
    try:
        with connect(settings) as cluster:
            yield from _of_connected(cluster)
    except ImeceError as error:
        yield failed("cluster", error)


def _of_connected(cluster: Cluster) -> Iterator[Check]:
    flaw = kubeconfig.token_flaw(cluster.access.token)
    if flaw:
        yield Check("cluster token", "fail", flaw, "log in again", 3)
        return
    try:
        missing = [right for right in RIGHTS if not cluster.has_right(right)]
    except ClusterError as error:
        yield failed("cluster", error)
        return
    yield Check("cluster", "ok", str(cluster))
    if cluster.date is not None:
        yield clock("cluster clock", "the API server", cluster.date + 0.5, time.time())
    if missing:
        yield Check(
            "cluster rights",
            "fail",
            f"no right in namespace {cluster.namespace} to {', '.join(map(str, missing))}",
            "have the Role imece-producer of deploy/producer bound to you in this namespace",
            3,
        )
    else:
        yield Check("cluster rights", "ok", "all that imece needs")
    try:
        scaled_object, deployment = cluster.scaled_object(), cluster.deployment()
    except ClusterError as error:
        yield failed("keda" if not error.known else "workers", error)
        return
    yield _keda(cluster)
    now = scaling.of(scaled_object, deployment)
    yield Check(
        "workers",
        "ok" if now.paused is None else "warn",
        f"{now.ready} ready, {now.wanted} wanted, limit {now.limit}"
        + (f"; {now.paused}" if now.paused else ""),
        "" if now.paused is None else "`imece resume`",
    )
    yield from _scaler(cluster, scaled_object, now)
    yield from _many("claim", list(diagnose.of_claims(cluster, deployment)), _bound(deployment))
    yield from _many(
        "pods",
        [*diagnose.of_deployment(deployment), *diagnose.of_pods(cluster, deployment)],
        "nothing keeps them from working",
    )


def _bound(deployment: dict[str, Any]) -> str:
    claims = diagnose.claims(deployment)
    return f"{', '.join(claims)} bound" if claims else "the workers mount none"


def _many(name: str, flaws: list[str], fine: str) -> Iterator[Check]:
    if not flaws:
        yield Check(name, "ok", fine)
    for flaw in flaws:
        yield Check(name, "fail", flaw, "docs/troubleshooting.md", 3)


def _keda(cluster: Cluster) -> Check:
    try:
        version = cluster.keda_version()
    except ClusterError:
        version = None  # to look at it takes a right on the whole cluster
    if version is None:
        return Check("keda", "ok", "installed; which version is not to be seen from here")
    if numbers(version) < OLDEST_KEDA:
        wanted = ".".join(map(str, OLDEST_KEDA))
        return Check("keda", "warn", f"version {version}", f"imece is made for {wanted} and later")
    return Check("keda", "ok", f"version {version}")


def _scaler(
    cluster: Cluster, scaled_object: dict[str, Any], now: scaling.Scaling
) -> Iterator[Check]:
    """The ScaledObject, the keys it counts, and the autoscaler KEDA makes of it."""
    if now.paused is None:
        flaws = list(diagnose.of_keda(cluster, scaled_object, cluster.settings.queue))
        fine = f"ready, and its triggers count the queue {cluster.settings.queue}"
        yield from _many("scaled object", flaws, fine)
    name = scaled_object.get("status", {}).get("hpaName")
    if not name or now.paused is not None:
        return
    try:
        active = diagnose.condition(cluster.autoscaler(name).get("status", {}), "ScalingActive")
    except ClusterError as error:
        yield failed("autoscaler", error)
        return
    # With no replicas an autoscaler rests, and KEDA starts the first.
    if active.get("status") == "False" and active.get("reason") != "ScalingDisabled":
        yield Check(
            "autoscaler",
            "fail",
            f"{name} does not scale: {active.get('message')}",
            "KEDA's metrics server must run: kubectl -n keda (OpenShift: openshift-keda) get pods",
            3,
        )
    else:
        yield Check("autoscaler", "ok", name if now.wanted else f"{name}, at rest with no workers")


# What processes files, and where they are


def of_processor(settings: Settings) -> Iterator[Check]:
    """Loads it as a worker does, in a process of its own."""
    what = settings.processor or settings.command
    if not what:
        yield Check("processor", "ok", "none set here; the workers have theirs")
        return
    environment = {**os.environ, "IMECE_PROCESSOR": settings.processor or ""}
    environment["IMECE_COMMAND"] = settings.command or ""
    try:
        ended = subprocess.run(
            # -P: ours, not one in this directory
            [sys.executable, "-P", "-m", "imece_worker", "--check"],
            env={name: value for name, value in environment.items() if value},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Check(
            "processor",
            "fail",
            f"{what}: importing it takes more than {seconds(PATIENCE)}",
            "leave the work to the function; a module is for definitions",
            2,
        )
        return
    if ended.returncode == 0:
        yield Check("processor", "ok", f"{what} can be loaded")
        return
    lines = ended.stderr.strip().splitlines()
    last = lines[-1].removeprefix("imece-worker: ") if lines else f"exit code {ended.returncode}"
    yield Check("processor", "fail", names.printable(last), "docs/reference/processors.md", 2)


def of_directories(source: Path | None, target: Path | None) -> Iterator[Check]:
    """Whether the input can be read and the output written, by doing it."""
    if source is not None:
        try:
            with os.scandir(source) as entries:
                next(entries, None)
            yield Check("input", "ok", f"{source} can be read")
        except OSError as error:
            yield Check(
                "input",
                "fail",
                f"{source} cannot be read: {error.strerror}",
                "mount it, or give user or group the right to read it",
                2,
            )
    if target is not None:
        try:
            there = next(one for one in (target, *target.parents) if one.exists())
            with tempfile.TemporaryFile(dir=there, prefix=os.fsdecode(names.TEMPORARY_PREFIX)):
                pass
            yield Check("output", "ok", f"{target} can be written to")
        except OSError as error:
            yield Check(
                "output",
                "fail",
                f"{target} cannot be written to: {error.strerror}",
                "mount it read-write, or give user or group the right to write to it",
                2,
            )
