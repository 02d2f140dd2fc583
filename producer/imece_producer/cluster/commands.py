"""What the command line does with the workers of a cluster, and what it says of it."""

from typing import Any

from imece.errors import ImeceError
from imece.run.status import Backlog, Status
from imece.settings import Settings
from imece_producer import display
from imece_producer.cluster import diagnose, scaling
from imece_producer.cluster.client import Cluster, ClusterError, connect
from imece_producer.cluster.reason import Reason
from imece_producer.cluster.scaling import Scaling


def look(settings: Settings, now: Status | None = None) -> dict[str, Any]:
    """The workers, ready for JSON; `error` if the cluster does not say.

    Args:
        now: the run they are for; None if no run can be read.
    """
    pending = now.backlog.pending if now is not None else 0
    try:
        with connect(settings) as cluster:
            if now is not None and now.has_ended:  # nothing is held up
                return _summary(cluster, scaling.read(cluster), [])
            return _summary(cluster, *diagnose.look(cluster, settings.queue, pending))
    except ImeceError as error:
        return {"error": str(error)}


def _summary(cluster: Cluster, found: Scaling, reasons: list[Reason]) -> dict[str, Any]:
    return {"where": str(cluster), **found.summary(), "reasons": list(map(str, reasons))}


def scale(settings: Settings, limit: int, minimum: int | None, as_json: bool) -> None:
    with connect(settings) as cluster:
        _say_where(cluster)
        queue = _backlog(settings)
        before, after = scaling.change(cluster, limit, minimum, queue)
    _tell(before, after, as_json)


def pause(settings: Settings, scale_in_only: bool, as_json: bool) -> None:
    with connect(settings) as cluster:
        _say_where(cluster)
        if scale_in_only:
            _warn_of_old_keda(cluster)
        before, after = scaling.pause(cluster, scale_in_only=scale_in_only)
    _tell(before, after, as_json)


def resume(settings: Settings, as_json: bool) -> None:
    with connect(settings) as cluster:
        _say_where(cluster)
        before, after = scaling.resume(cluster)
    _tell(before, after, as_json)


def _backlog(settings: Settings) -> Backlog | None:
    """The queue, if Redis is there; without it KEDA starts the workers, a moment later."""
    try:
        return scaling.read_backlog(settings)
    except ImeceError as error:
        display.say(f"(what the queue needs is left to KEDA: {error.what})")
        return None


def _warn_of_old_keda(cluster: Cluster) -> None:
    try:
        version = cluster.keda_version()
    except ClusterError:
        return  # to look at it takes a right on the whole cluster
    if version is not None and scaling.numbers(version) < scaling.PAUSES_SCALE_IN:
        display.say(f"(KEDA {version} takes no notice of it: that came with 2.18)")


def _tell(before: Scaling, after: Scaling, as_json: bool) -> None:
    if as_json:
        display.put_json({"was": before.summary(), "is": after.summary()})
        return
    display.put(f"it was {display.replicas(before.summary())}")
    display.put(f"it is  {display.replicas(after.summary())}")


def _say_where(cluster: Cluster) -> None:
    display.say(f"({cluster})")
