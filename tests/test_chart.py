"""The Helm chart: for the same choices it gives the same objects as kustomize."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests import chart
from tests.chart import CHART
from tests.conftest import ROOT
from tests.manifests import DEPLOY, Manifest, pods, rendered
from tests.pages import DOCS, Block, blocks
from tests.test_deploy import NEWEST, Yours

BUILT = ROOT / "build" / "bin" / "helm"
NODES = DOCS / "how-to" / "nodes.md"
EXAMPLE = (DEPLOY / "overlays" / "example" / "kustomization.yaml").read_text()

needs_helm = pytest.mark.slow
"""Helm is built once where there is none, and that takes minutes."""


# What is made


def test_the_templates_are_those_of_the_manifests(tmp_path: Path) -> None:
    """To fix: make chart"""
    made = shutil.copytree(CHART, tmp_path / "chart")
    chart.write(made)
    assert files(made) == files(CHART)


def files(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text("utf-8")
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_difference_of_the_platforms_that_no_value_decides_is_refused() -> None:
    with pytest.raises(AssertionError, match="what decides"):
        chart.merged({"a": [{"b": 1}]}, {"a": [{"b": 2}]})
    with pytest.raises(AssertionError, match="openshift has a field"):
        chart.merged({}, {"a": 1})
    assert chart.merged({"a": 1, "b": 2}, {"a": 1}) == {"a": 1, "b": f"{chart.PLAIN}2"}


def test_the_chart_has_the_version_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (version, version)


def values() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return content


def schema() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return content


def test_the_values_and_their_schema_have_the_same_names() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    jsonschema.validate(values(), schema())

    def compare(found: dict[str, Any], described: dict[str, Any], where: str) -> None:
        if described.get("additionalProperties", True) is False:
            names = set(described["properties"]) - {"global"}
            assert set(found) == names, where
            for name in names:
                if isinstance(found[name], dict):
                    compare(found[name], described["properties"][name], f"{where}.{name}")

    compare(values(), schema(), "values")


def test_every_value_is_used_and_every_one_that_is_used_is_there() -> None:
    text = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    used = set(re.findall(r"\.Values\.([\w.]+)", text))
    there = set()

    def collect(found: dict[str, Any], where: str) -> None:
        for name, value in found.items():
            if isinstance(value, dict) and value and name != "settings":
                collect(value, f"{where}{name}.")
            else:
                there.add(f"{where}{name}")

    collect(values(), "")
    assert {name for name in used if not name.startswith("settings.")} == there


# The same objects


def without_what_is_meant(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """The objects by their names, without the differences that are meant:

    - Helm makes the namespace itself, if told to, and the chart makes no Secret.
    - kustomize puts a hash after the name of a map. Helm keeps the name, and the pods have a
      checksum of what is in the map.
    - The claim of the chart outlives `helm uninstall`.
    - A patch changes the order of volumes, of their places and of variables.
    """
    found = {}
    for manifest in chart.unhashed(manifests):
        if manifest["kind"] in ("Namespace", "Secret"):
            continue
        template = manifest["spec"].get("template", {}) if "spec" in manifest else {}
        for metadata in (manifest["metadata"], template.get("metadata", {})):
            annotations = {
                key: value
                for key, value in metadata.pop("annotations", {}).items()
                if not key.startswith(("checksum/", "helm.sh/"))
            }
            if annotations:
                metadata["annotations"] = annotations
        for spec in pods([manifest]):
            spec["volumes"].sort(key=itemgetter("name"))
            for container in spec["containers"]:
                container["volumeMounts"].sort(key=itemgetter("mountPath"))
                container.get("env", []).sort(key=itemgetter("name"))
        key = chart.identity(manifest)
        assert key not in found, f"twice: {key}"
        found[key] = manifest
    return found


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = BUILT if BUILT.exists() else shutil.which("helm")
    assert program, "there is no helm here: run make helm"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def from_chart(folder: Path, given: dict[str, Any], namespace: str = "imece") -> list[Manifest]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(given))
    done = helm("template", "any", CHART, "--namespace", namespace, "--values", file)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def on_page(page: str, heading: str, title: str | None) -> list[Block]:
    """The YAML with that title in a section of a how-to page."""
    path = DOCS / "how-to" / page
    text = path.read_text("utf-8")
    start = text.index(f"\n## {heading}\n")
    end = text.find("\n## ", start + 1)
    lines = range(text.count("\n", 0, start) + 1, text.count("\n", 0, end if end > 0 else None) + 2)
    found = [
        block
        for block in blocks(path)
        if block.line in lines and block.language == "yaml" and block.title == title
    ]
    assert found, f"{page}, {heading}: no {title}"
    return found


def values_of(page: str, heading: str, number: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(on_page(page, heading, "values.yaml")[number].text)
    return content


def patch_on_page(page: str, heading: str, title: str | None = None) -> dict[str, Any]:
    """The one patch for kustomize in a section of a how-to page."""
    (block,) = on_page(page, heading, title)
    (content,) = yaml.safe_load(block.text)
    patch: dict[str, Any] = content
    return patch


def patch(kind: str, name: str, **operation: Any) -> dict[str, Any]:
    return {"target": {"kind": kind, "name": name}, "patch": yaml.safe_dump([operation])}


def overlay(
    *patches: dict[str, Any],
    settings: tuple[str, ...] = (),
    resources: tuple[str, ...] = ("../plain",),
    transformers: tuple[str, ...] = ("../../redis/wiring", "../../wiring"),
) -> str:
    content: dict[str, Any] = {
        "namespace": "imece",
        "resources": list(resources),
        "patches": list(patches),
        "configMapGenerator": [{"name": "imece", "behavior": "merge", "literals": list(settings)}],
        "transformers": list(transformers),
    }
    return str(yaml.safe_dump(content))


@dataclass(frozen=True)
class Choice:
    """The same choice, said to kustomize and to Helm."""

    overlay: str
    values: dict[str, Any] = field(default_factory=dict)
    namespace: str = "imece"


SECTIONS = re.findall(r"^## (.+)$", NODES.read_text("utf-8"), re.MULTILINE)
CHANGE = "Change something"
OPENSHIFT = {"openshift": True}
REDIS_ELSEWHERE = {
    platform: overlay(
        patch_on_page("own-redis.md", "On a cluster"),
        patch(
            "NetworkPolicy",
            "imece",
            op="add",
            path="/spec/egress/-",
            value={
                "to": [{"ipBlock": {"cidr": "192.0.2.10/32"}}],
                "ports": [{"protocol": "TCP", "port": 6380}],
            },
        ),
        settings=("IMECE_REDIS_URL=redis://redis.example.com:6380/3",),
        resources=(f"../{platform}",),
        transformers=("../../wiring",),
    )
    for platform in ("plain", "openshift")
}
NO_PRODUCER = {
    "target": {
        "kind": "Deployment|Role|RoleBinding|ServiceAccount",
        "name": "imece-producer|imece-ask-keda",
    },
    "patch": "{$patch: delete, apiVersion: any, kind: any, metadata: {name: any}}",
}
CHOICES = {
    "plain": Choice(overlay()),
    "openshift": Choice(overlay(resources=("../openshift",)), OPENSHIFT),
    "the five things": Choice(EXAMPLE, values_of("helm.md", "Steps"), "team-a"),
    "the five things on openshift": Choice(
        EXAMPLE.replace("- ../plain #", "- ../openshift #"),
        values_of("helm.md", "Steps") | OPENSHIFT,
        "team-a",
    ),
    "another queue": Choice(
        overlay(settings=("IMECE_QUEUE=night-2_B",)), {"settings": {"IMECE_QUEUE": "night-2_B"}}
    ),
    "settings that are numbers and words": Choice(
        overlay(settings=("IMECE_MEMORY_LIMIT=1000000", "IMECE_VERSION=on")),
        {"settings": {"IMECE_MEMORY_LIMIT": 1000000, "IMECE_VERSION": "on"}},
    ),
    "a program": Choice(
        overlay(
            patch("ConfigMap", "imece", op="remove", path="/data/IMECE_PROCESSOR"),
            settings=("IMECE_COMMAND=tool --in {input} --out {output}",),
        ),
        values_of("helm.md", CHANGE, 0),
    ),
    "a registry with a login": Choice(
        overlay(
            patch(
                "ServiceAccount",
                ".*",
                op="add",
                path="/imagePullSecrets",
                value=[{"name": "my-registry"}],
            )
        ),
        values_of("helm.md", CHANGE, 1),
    ),
    "a redis of one's own": Choice(REDIS_ELSEWHERE["plain"], values_of("helm.md", CHANGE, 2)),
    "a redis of one's own on openshift": Choice(
        REDIS_ELSEWHERE["openshift"], values_of("helm.md", CHANGE, 2) | OPENSHIFT
    ),
    "no producer": Choice(overlay(NO_PRODUCER), {"producer": {"enabled": False}}),
    "monitoring": Choice(
        overlay(resources=("../plain", "../../monitoring")), values_of("helm.md", CHANGE, 3)
    ),
    **{
        heading: Choice(
            overlay(patch_on_page("nodes.md", heading, "kustomization.yaml")),
            values_of("nodes.md", heading),
        )
        for heading in SECTIONS
    },
}


@needs_helm
@pytest.mark.parametrize("name", CHOICES)
def test_chart_and_overlay_give_the_same_objects(name: str, tmp_path: Path) -> None:
    choice, yours = CHOICES[name], Yours(tmp_path)
    (yours.directory / "kustomization.yaml").write_text(choice.overlay)
    if name == "monitoring":  # as its comment says
        with (yours.directory.parents[1] / "monitoring" / "kustomization.yaml").open("a") as file:
            file.write("labels: [{pairs: {release: kube-prometheus-stack}}]\n")
    by_kustomize = without_what_is_meant(rendered(yours.directory))
    by_helm = without_what_is_meant(from_chart(tmp_path, choice.values, choice.namespace))
    assert by_helm.keys() == by_kustomize.keys()
    for key, manifest in by_kustomize.items():
        assert yaml.safe_dump(by_helm[key]) == yaml.safe_dump(manifest)


@needs_helm
def test_what_only_the_chart_has(tmp_path: Path) -> None:
    """The differences that are meant are there."""
    plain = from_chart(tmp_path, {})
    kinds = {manifest["kind"] for manifest in plain}
    assert not kinds & {"Namespace", "Secret"}
    (claim,) = (one for one in plain if one["kind"] == "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def checksums(manifests: list[Manifest]) -> dict[str, str]:
    return {
        manifest["metadata"]["name"]: value
        for manifest in manifests
        if manifest["kind"] in ("Deployment", "StatefulSet")
        for key, value in manifest["spec"]["template"]["metadata"]["annotations"].items()
        if key.startswith("checksum/")
    }


@needs_helm
def test_a_changed_setting_is_a_rollout_and_a_changed_limit_is_none(tmp_path: Path) -> None:
    before = checksums(from_chart(tmp_path, {}))
    limit = checksums(from_chart(tmp_path, {"maxReplicas": 50}))
    setting = checksums(from_chart(tmp_path, {"settings": {"IMECE_FILE_TIMEOUT": 60}}))
    assert set(before) == {"imece-worker", "imece-producer", "imece-redis"}
    assert limit == before
    assert {name for name in before if setting[name] != before[name]} == {
        "imece-worker",
        "imece-producer",
    }


@needs_helm
def test_kedas_triggers_use_tls_where_the_workers_do(tmp_path: Path) -> None:
    url = "rediss://redis.example.com:6380"
    given = {"redis": {"enabled": False}, "settings": {"IMECE_REDIS_URL": url}}
    (scaled,) = (one for one in from_chart(tmp_path, given) if one["kind"] == "ScaledObject")
    for trigger in scaled["spec"]["triggers"]:
        where = {key: trigger["metadata"][key] for key in ("address", "databaseIndex", "enableTLS")}
        assert where == {
            "address": "redis.example.com:6380",
            "databaseIndex": "0",
            "enableTLS": "true",
        }


@needs_helm
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"maxReplica": 5}, "maxReplica"),
        ({"maxReplicas": "many"}, "maxReplicas"),
        ({"worker": {"resources": {"limits": {"cpu": 1}}}}, "resources"),
        ({"settings": {"IMECE_REDIS_URL": "redis.example.com"}}, "IMECE_REDIS_URL"),
        ({"redis": {"enabled": False}}, "redis.enabled is false: set settings.IMECE_REDIS_URL"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(
    given: dict[str, Any], says: str, tmp_path: Path
) -> None:
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(given))
    done = helm("template", "any", CHART, "--values", tmp_path / "values.yaml")
    assert done.returncode != 0
    assert says in done.stderr


@needs_helm
def test_helm_finds_nothing_to_say(tmp_path: Path) -> None:
    done = helm("lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr


@needs_helm
def test_the_package_has_no_sources(tmp_path: Path) -> None:
    done = helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("imece-*.tgz")
    names = subprocess.run(
        ["tar", "tzf", archive], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "imece/files/imece-redis/start.sh" in names
    assert not [name for name in names if "source" in name]


# The page of nodes


@pytest.mark.parametrize("heading", SECTIONS)
def test_each_patch_on_the_page_of_nodes_fits_the_example(heading: str, tmp_path: Path) -> None:
    yours = Yours(tmp_path)
    content = yaml.safe_load(EXAMPLE)
    content["patches"].append(patch_on_page("nodes.md", heading, "kustomization.yaml"))
    (yours.directory / "kustomization.yaml").write_text(yaml.safe_dump(content))
    before = rendered(DEPLOY / "overlays" / "example")
    (changed,) = (one for one in rendered(yours.directory) if one not in before)
    assert chart.identity(changed) == ("Deployment", "imece-worker")
    kubernetes_validate.validate(changed, NEWEST, strict=True)


def test_the_priority_class_is_right_by_its_schema() -> None:
    (block,) = on_page("nodes.md", "Priority", "priorityclass.yaml")
    kubernetes_validate.validate(yaml.safe_load(block.text), NEWEST, strict=True)


@pytest.mark.parametrize("page", ["helm.md", "nodes.md"])
def test_all_values_on_a_page_are_tried(page: str) -> None:
    tried = [choice.values for choice in CHOICES.values()]
    for block in blocks(DOCS / "how-to" / page):
        if block.title == "values.yaml":
            shown = yaml.safe_load(block.text)
            assert any(values | shown == values for values in tried), f"{page}, line {block.line}"
