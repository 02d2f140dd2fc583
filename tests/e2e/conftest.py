"""imece in a namespace of a real cluster, one for each process of pytest."""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.cluster import ENVIRONMENT, Cluster, Options

Figure = Callable[[str, float], None]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests measured; the figures in docs/explanation/faults.md are these."""
    lines = [
        f"{report.head_line}: {name} {value} s"
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
    ]
    if lines:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(sorted(lines)))


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Notes seconds that a test measured, for the summary."""
    return lambda name, seconds: record_property(name, round(seconds, 1))


@pytest.fixture(scope="session")
def options() -> Options:
    try:
        found = Options.read(ENVIRONMENT)
    except LookupError as error:
        message = f"{error.args[0]}; see tests/e2e/README.md"
        raise pytest.fail.Exception(message, pytrace=False) from None
    return found.beside(os.environ.get("PYTEST_XDIST_WORKER", "gw"))


@pytest.fixture(scope="session")
def deployed(options: Options, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(options)
    try:
        cluster.deploy(tmp_path_factory.mktemp("overlay"))
        yield cluster
    finally:
        if not options.keep:
            cluster.remove()


@pytest.fixture
def cluster(deployed: Cluster) -> Cluster:
    """With no work and no workers."""
    deployed.clear()
    return deployed
