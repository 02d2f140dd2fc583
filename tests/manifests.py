"""What `kubectl apply -k` would send, as Python objects."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
BUILT = ROOT / "build" / "bin" / "kustomize"

Manifest = dict[str, Any]


def rendered(directory: Path) -> list[Manifest]:
    """The objects of a kustomization."""
    return list(yaml.safe_load_all(text_of(directory)))


def text_of(directory: Path) -> str:
    if BUILT.exists():
        command = [str(BUILT), "build"]
    elif kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize"]
    else:
        pytest.fail("there is no kubectl here, and no kustomize of ours: run make kustomize")
    done = subprocess.run([*command, directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The object of that kind and name; a ConfigMap's name without its hash."""
    found = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind
        and (
            manifest["metadata"]["name"] == name
            or (
                kind == "ConfigMap"
                and manifest["metadata"]["name"].rpartition("-")[0] == name
                and len(manifest["metadata"]["name"].rpartition("-")[2]) == 10
            )
        )
    ]
    assert len(found) == 1, f"{len(found)} objects are {kind} {name}"
    return found[0]


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    """The specs of all pods that come of it."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            yield manifest["spec"]["template"]["spec"]


def pod(manifests: list[Manifest], name: str) -> Manifest:
    """The spec of the pods of a Deployment."""
    spec: Manifest = one(manifests, "Deployment", name)["spec"]["template"]["spec"]
    return spec


def every_key(value: Any) -> Iterator[str]:
    """The keys of a manifest, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from every_key(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from every_key(inner)
