"""The API servers as fixtures."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.api_server import ApiServer
from tests.control_plane import ControlPlane
from tests.kubernetes_stand_in import StandIn
from tests.real_api_server import RealServer


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The real API server of make test-cluster, one for each process of the tests."""
    assets = Path(os.environ["TEST_CONTROL_PLANE"])
    made = ControlPlane(assets, tmp_path_factory.mktemp("control-plane"))
    yield made
    made.close()


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ApiServer]:
    """An API server with what deploy/ makes, and KUBECONFIG naming it."""
    made: ApiServer
    if "TEST_CONTROL_PLANE" in os.environ:
        made = RealServer(request.getfixturevalue("control_plane"))
    else:
        made = StandIn()
    yield from deployed(made, tmp_path, monkeypatch)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The same, and always the stand-in: for what no real API server can be brought to do."""
    yield from deployed(StandIn(), tmp_path, monkeypatch)


Made = TypeVar("Made", bound=ApiServer)


def deployed(made: Made, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    try:
        made.deploy()
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig(folder / "kubeconfig")))
        yield made
    finally:
        made.close()
