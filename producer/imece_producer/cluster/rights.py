"""What imece may have to ask of a cluster, in RBAC's own words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Right:
    """A verb on a resource: what RBAC grants."""

    verb: str
    resource: str
    group: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {self.resource}{group}" + (
            f"/{self.subresource}" if self.subresource else ""
        )


READ_SCALED_OBJECT = Right("get", "scaledobjects", "keda.sh")
LIST_SCALED_OBJECTS = Right("list", "scaledobjects", "keda.sh")
CHANGE_SCALED_OBJECT = Right("patch", "scaledobjects", "keda.sh")
READ_DEPLOYMENT = Right("get", "deployments", "apps")
CHANGE_DEPLOYMENT = Right("patch", "deployments", "apps")
"""For a rollout only, so not in `RIGHTS`."""

CHANGE_SCALE = Right("patch", "deployments", "apps", "scale")
LIST_PODS = Right("list", "pods")
READ_LOG = Right("get", "pods", "", "log")
LIST_EVENTS = Right("list", "events")
READ_CLAIM = Right("get", "persistentvolumeclaims")
READ_HPA = Right("get", "horizontalpodautoscalers", "autoscaling")
ASK_KEDA = Right("list", "composite-metric", "external.metrics.k8s.io")
"""The resource is the metric's own name: KEDA's for a ScaledObject with a formula. Not in `RIGHTS`:
an admin of a namespace cannot give it, as KEDA's own right to it is for the autoscaler alone."""


RIGHTS = (
    READ_SCALED_OBJECT,
    LIST_SCALED_OBJECTS,
    CHANGE_SCALED_OBJECT,
    READ_DEPLOYMENT,
    CHANGE_SCALE,
    LIST_PODS,
    READ_LOG,
    LIST_EVENTS,
    READ_CLAIM,
    READ_HPA,
)
"""What all of imece's commands need in the workers' namespace."""

VERSIONS = {
    "keda.sh": "v1alpha1",
    "apps": "v1",
    "autoscaling": "v2",
    "external.metrics.k8s.io": "v1beta1",
    "authorization.k8s.io": "v1",
    "apiextensions.k8s.io": "v1",
}
