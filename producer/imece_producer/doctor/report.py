"""Everything a first-time user trips over, looked at one by one, each with its fix.

The command line prints it; an Airflow task can ask the same before it starts.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from imece import names
from imece.errors import ImeceError
from imece.settings import Settings
from imece_producer import processor
from imece_producer.cluster import diagnose, kubeconfig, pods, scaling
from imece_producer.cluster.client import Cluster, connect
from imece_producer.cluster.errors import ClusterError
from imece_producer.cluster.reason import Object, Reason
from imece_producer.cluster.rights import ASK_KEDA, RIGHTS
from imece_producer.cluster.scaling import Scaling, numbers
from imece_producer.display import seconds
from imece_producer.doctor.check import Check, clock, fail, failed, ok, warn
from imece_producer.doctor.redis import of_redis

OLDEST_KEDA = (2, 20)

PATIENCE = 60.0
"""Seconds the import of a processor may take."""


def checks(
    settings: Settings, source: Path | None = None, target: Path | None = None
) -> Iterator[Check]:
    """All checks, each as soon as it is made. Raises nothing: what goes wrong is a check's word.

    What no setting names is looked at, too, but what is wrong there is only a warning: the cluster
    of a laptop's kubeconfig, and a Redis on this machine. A local run needs neither.

    Args:
        source, target: a run's input and output directory; in place of those in the settings.
    """
    named = kubeconfig.is_named(settings)
    yield from softened(of_redis(settings), not settings.names_redis)
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
        hint = f"{check.hint}; `imece local` does not need it"
        yield replace(check, verdict="warn", exit_code=0, hint=hint) if may_be_meant else check


# The cluster


def of_cluster(settings: Settings) -> Iterator[Check]:
    try:
        with connect(settings) as cluster:
            yield from _of_connected(cluster)
    except ImeceError as error:
        yield failed("cluster", error)


def _of_connected(cluster: Cluster) -> Iterator[Check]:
    if flaw := kubeconfig.token_flaw(cluster.access.token):
        yield fail("cluster token", flaw, "log in again")
        return
    missing = [str(right) for right in RIGHTS if not cluster.has_right(right)]
    yield ok("cluster", str(cluster))
    if cluster.date is not None:
        yield clock("cluster clock", "the API server", cluster.date + 0.5, time.time())
    if missing:
        says = f"no right in namespace {cluster.namespace} to {', '.join(missing)}"
        hint = "have the Role imece-producer of deploy/producer bound to you in this namespace"
        yield fail("cluster rights", says, hint)
    else:
        yield ok("cluster rights", "all that imece needs")
    try:
        scaled_object, deployment = cluster.scaled_object(), cluster.deployment()
    except ClusterError as error:
        yield failed("workers" if error.known else "keda", error)
        return
    yield _keda(cluster)
    now = scaling.of(scaled_object, deployment)
    says = f"{now.ready} ready, {now.wanted} wanted, limit {now.limit}"
    if now.paused is not None:
        yield warn("workers", f"{says}; {now.paused}", "`imece resume`")
    else:
        yield ok("workers", says)
        queue = cluster.settings.queue
        flaws = list(diagnose.of_scaled_object(cluster, scaled_object, queue))
        yield from _each("scaled object", flaws, f"ready, and its triggers count the queue {queue}")
        if not flaws:  # they explain what the autoscaler would say
            yield from _autoscaler(cluster, scaled_object, now)
    there = pods.pods_of(cluster, deployment)
    claims = pods.of_claims(cluster, deployment, there)
    mounted = ", ".join(pods.claims_of(deployment["spec"]["template"]["spec"]))
    bound = f"{mounted} bound" if mounted else "the workers mount none"
    yield from _each("claim", claims.values(), bound)
    flaws = [
        *pods.of_deployment(cluster, deployment),
        *pods.of_pods(cluster, there, claims),
    ]
    yield from _each("pods", flaws, f"nothing{' else' if claims else ''} keeps them from working")


def _each(name: str, flaws: Collection[Reason], fine: str) -> Iterator[Check]:
    if not flaws:
        yield ok(name, fine)
    for flaw in flaws:
        yield (warn if flaw.may_pass else fail)(name, flaw.what, flaw.fix)


def _keda(cluster: Cluster) -> Check:
    try:
        version = cluster.keda_version()
    except ClusterError:
        version = None  # to look at it takes a right on the whole cluster
    if version is None:
        return ok("keda", "installed; which version is not to be seen from here")
    if numbers(version) < OLDEST_KEDA:
        wanted = ".".join(map(str, OLDEST_KEDA))
        return warn("keda", f"version {version}", f"imece is made for {wanted} and later")
    return ok("keda", f"version {version}")


def _autoscaler(cluster: Cluster, scaled_object: Object, now: Scaling) -> Iterator[Check]:
    """What KEDA has made of the ScaledObject, and whether KEDA answers it."""
    name = scaled_object.get("status", {}).get("hpaName")
    if not name:
        return
    flaws = list(diagnose.of_autoscaler(cluster, scaled_object, now, _pending(cluster.settings)))
    if flaws or cluster.has_right(ASK_KEDA):
        at_rest = "" if now.wanted else ", at rest with no workers"
        yield from _each("autoscaler", flaws, f"{name}{at_rest}; KEDA answers it")
    else:
        yield warn(
            "autoscaler",
            f"{name}; whether KEDA answers it cannot be seen from here: no right to {ASK_KEDA}",
            f"deploy/ask-keda gives it; or look: {diagnose.KEDA_PODS}",
        )


def _pending(settings: Settings) -> int:
    """How many bucket jobs wait, as far as it can be seen from here."""
    try:
        return scaling.read_backlog(settings).pending
    except ImeceError:
        return 0  # the check of Redis says why


# What processes files, and where they are


def of_processor(settings: Settings) -> Iterator[Check]:
    """Loads it as a worker does, in a process of its own."""
    what = settings.processor or settings.command or settings.shell
    if not what:
        yield ok("processor", "none set here; the workers have theirs")
        return
    try:
        flaw = processor.flaw(settings, patience=PATIENCE)
    except subprocess.TimeoutExpired:
        says = f"{what}: importing it takes more than {seconds(PATIENCE)}"
        yield fail(
            "processor", says, "leave the work to the function; a module is for definitions", 2
        )
        return
    if flaw:
        yield fail("processor", flaw, "docs/reference/processors.md", 2)
    else:
        yield ok("processor", f"{what} can be loaded")


def of_directories(source: Path | None, target: Path | None) -> Iterator[Check]:
    """Whether the input can be read and the output written, by doing it."""
    if source is not None:
        try:
            with os.scandir(source) as entries:
                next(entries, None)
            yield ok("input", f"{source} can be read")
        except OSError as error:
            hint = "mount it, or give user or group the right to read it"
            yield fail("input", f"{source} cannot be read: {error.strerror}", hint, 2)
    if target is not None:
        try:
            there = next(one for one in (target, *target.parents) if one.exists())
            with tempfile.TemporaryFile(dir=there, prefix=os.fsdecode(names.TEMPORARY_PREFIX)):
                pass
            yield ok("output", f"{target} can be written to")
        except OSError as error:
            hint = "mount it read-write, or give user or group the right to write to it"
            yield fail("output", f"{target} cannot be written to: {error.strerror}", hint, 2)
