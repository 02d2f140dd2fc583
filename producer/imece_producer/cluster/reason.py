"""What keeps workers from coming: the words for it, and what its finders share."""

from dataclasses import dataclass
from typing import Any

from imece_producer.cluster.client import Cluster, ClusterError

FORBIDDEN = 403

Object = dict[str, Any]


@dataclass(frozen=True)
class Reason:
    """What keeps workers from coming.

    Attributes:
        what: what is wrong, and with which object.
        fix: what to do about it, or the command that shows more.
        may_pass: whether it is normal for some seconds.
    """

    what: str
    fix: str
    may_pass: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


def condition(status: Object, kind: str) -> Object:
    """A condition of an object's status; empty if there is none."""
    every = status.get("conditions") or []
    return next((one for one in every if one.get("type") == kind), {})


def describe(cluster: Cluster, kind: str, name: str) -> str:
    """The command that shows all of an object."""
    return f"kubectl -n {cluster.namespace} describe {kind} {name}"


def warnings(cluster: Cluster, kind: str, name: str) -> list[str]:
    """What Kubernetes warns of for an object, the latest first; nothing if we may not look."""
    try:
        return cluster.warnings(kind, name)
    except ClusterError:
        return []


def last_words(message: str) -> str:
    """The end of a chain of errors, which names its root: `manifest unknown`."""
    return message.strip().rpartition(": ")[2]
