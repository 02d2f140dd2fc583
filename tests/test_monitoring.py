"""deploy/monitoring: whatever it names is there, on a real worker's page."""

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml

from imece_producer.cli import app
from tests.conftest import ROOT, Workbench
from tests.manifests import DEPLOY, one, rendered
from tests.test_metrics import page, samples, watched

FOLDER = ROOT / "deploy" / "monitoring"
DOCUMENT = (ROOT / "docs" / "reference" / "metrics.md").read_text()

TARGET_LABELS = {"namespace", "pipeline", "pod", "le"}
"""Labels that Prometheus adds, or that every histogram has."""

FOREIGN = {
    # keda.sh/docs/2.20/integrations/prometheus
    "keda_scaler_metrics_value",
    "keda_scaler_detail_errors_total",
    # kube-state-metrics, docs/metrics/workload/pod-metrics.md
    "kube_pod_container_status_restarts_total",
}


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return content


def rules() -> list[dict[str, Any]]:
    groups = read("prometheusrule.yaml")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return found


def filled_in(expression: str) -> str:
    """A dashboard's expression as Grafana would send it."""
    return expression.replace("$__rate_interval", "1m").replace("$__range", "1h")


def expressions() -> list[str]:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + [filled_in(expression) for expression in asked]


def selectors(node: object) -> Iterator[promql_parser.VectorSelector]:
    """All selectors of metrics within a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for part in ("lhs", "rhs", "expr", "vector_selector"):
        if hasattr(node, part):
            yield from selectors(getattr(node, part))
    for argument in getattr(node, "args", ()):
        yield from selectors(argument)


@pytest.fixture
def seen(workbench: Workbench) -> set[tuple[str, str]]:
    """Names on a worker's page, with the values of their labels."""
    workbench.files(1)
    workbench.enqueue()
    _, port = watched(workbench)
    workbench.ended()
    return set(samples(port))


def test_each_metric_of_dashboard_and_rules_is_on_a_workers_page(
    seen: set[tuple[str, str]],
) -> None:
    names = {name for name, _ in seen}
    labels = {"outcome", "ending", "direction"}
    used = set()
    for expression in expressions():
        for selector in selectors(promql_parser.parse(expression)):
            if selector.name in FOREIGN:
                continue
            assert selector.name in names, expression
            used.add(selector.name)
            for matcher in selector.matchers.matchers:
                assert matcher.name in labels | TARGET_LABELS, expression
                if matcher.name in labels:
                    assert (selector.name, matcher.value) in seen, expression
    assert used >= {name for name in names if name.endswith("_total")}  # each is made use of


def test_the_document_names_each_metric_and_each_value(workbench: Workbench) -> None:
    _, port = watched(workbench)
    families = set(re.findall(r"^# TYPE (\S+)", page(port), re.MULTILINE))
    assert set(re.findall(r"^\| `(imece_\w+)", DOCUMENT, re.MULTILINE)) == families
    for _, value in samples(port):
        if value.isalpha():
            assert f"`{value}`" in DOCUMENT


def test_the_document_lists_the_alerts() -> None:
    assert re.findall(r"^\| `(Imece\w+)`", DOCUMENT, re.MULTILINE) == [
        rule["alert"] for rule in rules()
    ]


def test_each_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert len(rule["annotations"]["description"].split()) > 20, rule["alert"]


def test_the_commands_that_alerts_name_exist() -> None:
    text = " ".join(rule["annotations"]["description"] for rule in rules())
    named = set(re.findall(r"`imece (\w+)", text))
    known = app.registered_commands
    commands = {command.name or getattr(command.callback, "__name__", "") for command in known}
    coming = {"pause", "doctor"}
    assert named <= commands | coming


@pytest.mark.slow
def test_objects_are_as_the_operator_wants_them() -> None:
    """The models let unknown fields pass and drop them: then what comes out differs."""
    # Takes as long as all tests' modules together.
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule

    for name, model in (("podmonitor.yaml", PodMonitor), ("prometheusrule.yaml", PrometheusRule)):
        written = read(name)
        understood = model.model_validate(written).model_dump(
            by_alias=True, exclude_unset=True, mode="json"
        )
        assert understood == written


def test_the_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    places = [panel["gridPos"] for panel in panels()]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels()}) == len(places)


def test_kustomize_makes_three_objects_of_it() -> None:
    objects = {item["kind"]: item for item in rendered(FOLDER)}
    assert set(objects) == {"ConfigMap", "PodMonitor", "PrometheusRule"}
    assert json.loads(objects["ConfigMap"]["data"]["imece.json"])["title"] == "imece"
    assert objects["ConfigMap"]["metadata"]["labels"] == {"grafana_dashboard": "1"}


def test_the_podmonitor_finds_the_workers_and_their_port() -> None:
    worker = one(rendered(DEPLOY / "overlays" / "plain"), "Deployment", "imece-worker")
    labels = worker["spec"]["template"]["metadata"]["labels"]
    assert read("podmonitor.yaml")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    [endpoint] = read("podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    [container] = worker["spec"]["template"]["spec"]["containers"]
    assert endpoint["port"] in [port["name"] for port in container["ports"]]
