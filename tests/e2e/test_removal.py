"""What an installation leaves behind that is taken away."""

from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster, Options
from tests.e2e.waits import within

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

KINDS = (
    "deployments,statefulsets,replicasets,pods,services,persistentvolumeclaims,configmaps,secrets,"
    "serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets,"
    "horizontalpodautoscalers,scaledobjects,triggerauthentications"
)
KUBERNETES = {"serviceaccount/default", "configmap/kube-root-ca.crt"}
"""What every namespace has."""


def test_delete_k_leaves_the_claim_of_redis_and_nothing_else(
    options: Options, tmp_path: Path
) -> None:
    """As docs/how-to/cluster.md says."""
    cluster = Cluster(options.beside("removal"))
    try:
        cluster.deploy(tmp_path)
        run = cluster.enqueue("before", {"a": 0.1})
        run.done(120)
        cluster.kubectl("delete", "-k", str(tmp_path), "--wait=true", timeout=300)
        left: set[str] = set()

        def only_the_claim() -> bool:
            nonlocal left
            left = set(cluster.kubectl("get", KINDS, "-o", "name").split()) - KUBERNETES
            return left == {"persistentvolumeclaim/data-imece-redis-0"}

        try:
            within(120, only_the_claim, "all else to go")
        except AssertionError as error:
            raise AssertionError(f"{error}; there is {sorted(left)}") from None
    finally:
        if not options.keep:
            cluster.remove()
