"""imece in a namespace of a real cluster, once for all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import ENVIRONMENT, Cluster, Options, within

DOWN_WITHIN = 180.0


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.environ.get("PYTEST_XDIST_WORKER"):
        pytest.fail("these tests share a cluster: run them with -n 0", pytrace=False)
    try:
        options = Options.read(ENVIRONMENT)
    except LookupError as error:
        message = f"{error.args[0]}; see tests/e2e/README.md"
        raise pytest.fail.Exception(message, pytrace=False) from None
    cluster = Cluster(options)
    folder: Path = tmp_path_factory.mktemp("overlay")
    try:
        cluster.deploy(folder)
        yield cluster
    finally:
        if not options.keep:
            cluster.remove()


@pytest.fixture
def cluster(deployed: Cluster) -> Cluster:
    """With no work and no workers."""
    deployed.limit(2)
    within(DOWN_WITHIN, lambda: not deployed.workers() and deployed.wanted() == 0, "no workers")
    return deployed
