"""Pipelines in one namespace: what `imece new pipeline` writes, and that no two of them meet."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from imece.run import keys
from imece.settings import PREFIX, Settings, load, workers_of
from tests import forks
from tests.api_server import ApiServer, Object
from tests.conftest import ROOT, Workbench
from tests.manifests import DEPLOY, Manifest, one, pod, pods, rendered
from tests.test_deploy import NEWEST, OLDEST, blocks_of_code

Completed = subprocess.CompletedProcess[str]


class Checkout:
    """A copy of deploy/, in which pipelines are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(DEPLOY, folder / "deploy")

    def overlay(self, name: str) -> Path:
        return self.folder / "deploy" / "overlays" / name

    def new(self, name: str, *options: str, image: str = "registry.example.com/x:1.0") -> Completed:
        """`imece new pipeline`, called here."""
        words = ["new", "pipeline", name, "--image", image, "--processor", "scans:measure"]
        environment = {key: text for key, text in os.environ.items() if not key.startswith(PREFIX)}
        return forks.run(
            [sys.executable, "-m", "imece_producer", *words, *options],
            cwd=self.folder,
            env={**environment, "PYTHONPATH": str(ROOT)},
        )

    def made(self, name: str, *options: str) -> list[Manifest]:
        """What `kubectl apply -k` would send for a pipeline that the command has written."""
        answer = self.new(name, *options)
        assert answer.returncode == 0, answer.stderr
        return rendered(self.overlay(name))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def identities(manifests: list[Manifest]) -> set[tuple[str, str]]:
    return {(one["kind"], one["metadata"]["name"]) for one in manifests}


def fits(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector without expressions selects a pod."""
    assert set(selector) <= {"matchLabels"}
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def labels_of_pods(manifests: list[Manifest]) -> dict[str, dict[str, str]]:
    """The labels of all pods that come of it, by the object that makes them."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in manifests
        if one["kind"] in ("Deployment", "StatefulSet")
    }


def selectors(manifests: list[Manifest]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What selects pods here: its name, and the selector."""
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        name = f"{kind} {manifest['metadata']['name']}"
        if kind in ("Deployment", "PodDisruptionBudget"):
            yield name, spec["selector"]
        elif kind == "NetworkPolicy":
            yield name, spec["podSelector"]


# What it writes


@pytest.mark.parametrize("platform", ["plain", "openshift"])
def test_two_pipelines_have_no_object_in_common(platform: str, checkout: Checkout) -> None:
    first = rendered(DEPLOY / "overlays" / platform)
    options = ["--openshift"] if platform == "openshift" else []
    scans, text = checkout.made("scans", *options), checkout.made("text", *options)
    for one_side, other in ((first, scans), (first, text), (scans, text)):
        assert not identities(one_side) & identities(other)
    shared = {"Namespace", "PersistentVolumeClaim", "Secret", "Service", "StatefulSet"}
    assert {kind for kind, _ in identities(first)} - {kind for kind, _ in identities(scans)} == (
        shared - ({"Namespace"} if platform == "openshift" else set())
    )
    for _, name in identities(scans):
        assert re.search(r"-scans(-\w{10})?$", name), name
    for version in (OLDEST, NEWEST):
        for manifest in scans:
            if not manifest["apiVersion"].startswith("keda.sh/"):
                kubernetes_validate.validate(manifest, version, strict=True)
    for spec in pods(scans):
        assert ("fsGroup" in spec["securityContext"]) == (platform == "plain")


def test_no_selector_of_one_pipeline_meets_a_pod_of_another(checkout: Checkout) -> None:
    first, scans = rendered(DEPLOY / "overlays" / "plain"), checkout.made("scans")
    there = labels_of_pods([*first, *scans])
    selected = {
        name: {made for made, labels in there.items() if fits(selector, labels)}
        for name, selector in (*selectors(first), *selectors(scans))
    }
    expected = {"NetworkPolicy imece-redis": {"imece-redis"}}
    for ending in ("", "-scans"):
        worker, producer = f"imece-worker{ending}", f"imece-producer{ending}"
        expected |= {
            f"Deployment {worker}": {worker},
            f"Deployment {producer}": {producer},
            f"PodDisruptionBudget {worker}": {worker},
            f"NetworkPolicy imece{ending}": {worker, producer},
        }
    assert selected == expected
    # Both may reach the one Redis, and it lets both in.
    for policy in (
        one(first, "NetworkPolicy", "imece"),
        one(scans, "NetworkPolicy", "imece-scans"),
    ):
        (to,) = policy["spec"]["egress"][0]["to"]
        reached = {name for name, labels in there.items() if fits(to["podSelector"], labels)}
        assert reached == {"imece-redis"}
    come = one(first, "NetworkPolicy", "imece-redis")["spec"]["ingress"][0]["from"][0]
    assert all(fits(come["podSelector"], labels) for labels in there.values())


def test_what_a_pipeline_names_is_its_own(checkout: Checkout) -> None:
    scans = checkout.made("scans")
    names = identities(scans)
    for component in ("worker", "producer"):
        spec = pod(scans, f"imece-{component}-scans")
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        for source in spec["containers"][0]["envFrom"]:
            assert ("ConfigMap", source["configMapRef"]["name"]) in names
    for manifest in scans:
        if manifest["kind"] == "RoleBinding":
            assert ("Role", manifest["roleRef"]["name"]) in names
            for subject in manifest["subjects"]:
                assert ("ServiceAccount", subject["name"]) in names
    scaled = one(scans, "ScaledObject", "imece-worker-scans")["spec"]
    assert scaled["scaleTargetRef"] == {"name": "imece-worker-scans"}
    for trigger in scaled["triggers"]:
        assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in names
    rules = one(scans, "Role", "imece-producer-scans")["rules"]
    patched = {
        (resource, tuple(rule.get("resourceNames", ())))
        for rule in rules
        for resource in rule["resources"]
        if "patch" in rule["verbs"]
    }
    ours = ("imece-worker-scans",)
    assert patched == {("scaledobjects", ours), ("deployments/scale", ours)}


def test_settings_queue_and_users_are_the_pipelines(checkout: Checkout) -> None:
    scans = checkout.made("scans", "--namespace", "team-a")
    assert {manifest["metadata"]["namespace"] for manifest in scans} == {"team-a"}
    data = one(scans, "ConfigMap", "imece-scans")["data"]
    settings = Settings(**{key.removeprefix(PREFIX).lower(): text for key, text in data.items()})
    assert {key.removeprefix(PREFIX).lower() for key in data} <= set(Settings.model_fields)
    assert (settings.queue, settings.redis_username) == ("scans", "imece-scans")
    assert settings.deployment == settings.scaled_object == workers_of("scans")
    assert data["IMECE_REDIS_URL"] == "redis://imece-redis.team-a.svc:6379/0"
    triggers = one(scans, "ScaledObject", "imece-worker-scans")["spec"]["triggers"]
    told = [trigger["metadata"] for trigger in triggers]
    counted = [keys.pending("scans"), keys.moving("scans"), keys.leases("scans")]
    assert [trigger["listName"] for trigger in told] == counted
    assert {trigger["username"] for trigger in told} == {"keda-scans"}
    assert {trigger["address"] for trigger in told} == {"imece-redis.team-a.svc:6379"}


def test_a_pod_gets_the_password_of_its_own_pipeline_only(checkout: Checkout) -> None:
    scans = checkout.made("scans")
    for component in ("worker", "producer"):
        spec = pod(scans, f"imece-{component}-scans")
        (secret,) = (volume["secret"] for volume in spec["volumes"] if "secret" in volume)
        assert secret == {
            "secretName": "imece-redis",
            "items": [{"key": "IMECE_REDIS_PASSWORD_scans", "path": "IMECE_REDIS_PASSWORD"}],
        }
    (target,) = one(scans, "TriggerAuthentication", "imece-redis-scans")["spec"]["secretTargetRef"]
    assert (target["name"], target["key"]) == ("imece-redis", "KEDA_REDIS_PASSWORD_scans")

    file = checkout.overlay("scans") / "passwords.yaml"
    assert file.stat().st_mode & 0o777 == 0o600
    passwords = yaml.safe_load(file.read_text())["stringData"]
    assert set(passwords) == {"IMECE_REDIS_PASSWORD_scans", "KEDA_REDIS_PASSWORD_scans"}
    assert all(re.fullmatch(r"[0-9a-f]{64}", password) for password in passwords.values())
    assert len(set(passwords.values())) == 2
    shown = json.dumps(scans) + (checkout.overlay("scans") / "kustomization.yaml").read_text()
    assert not any(password in shown for password in passwords.values())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone")
def test_git_ignores_the_passwords_and_nothing_else() -> None:
    def ignored(name: str) -> bool:
        file = f"deploy/overlays/scans/{name}"
        command = ["git", "check-ignore", "--quiet", file]
        return subprocess.run(command, cwd=ROOT, check=False).returncode == 0

    assert ignored("passwords.yaml")
    assert not ignored("kustomization.yaml")


def test_the_options_are_in_the_overlay(checkout: Checkout) -> None:
    folders = ("--input", "incoming", "--output", "made/of-scans/")
    scans = checkout.made("scans", "--claim", "fast", "--limit", "3", *folders)
    for component in ("worker", "producer"):
        spec = pod(scans, f"imece-{component}-scans")
        assert spec["containers"][0]["image"] == "registry.example.com/x:1.0"
        mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
        places = [
            (mounts[name]["mountPath"], mounts[name]["subPath"]) for name in ("input", "output")
        ]
        assert places == [("/data/incoming", "incoming"), ("/data/made/of-scans", "made/of-scans")]
        claims = [volume.get("persistentVolumeClaim") for volume in spec["volumes"]]
        assert claims.count({"claimName": "fast"}) == 2
    assert one(scans, "ScaledObject", "imece-worker-scans")["spec"]["maxReplicaCount"] == 3
    assert one(scans, "ConfigMap", "imece-scans")["data"]["IMECE_PROCESSOR"] == "scans:measure"


@pytest.mark.parametrize(
    ("given", "image"),
    [
        ("localhost:5000/a/b:2", "localhost:5000/a/b:2"),
        ("b:1e3", "b:1e3"),
        ("r.example.com/b@sha256:" + "ab" * 32, "r.example.com/b@sha256:" + "ab" * 32),
        ("r.example.com/b:1@sha256:" + "ab" * 32, "r.example.com/b@sha256:" + "ab" * 32),
    ],
)
def test_an_image_is_taken_as_it_is_written(given: str, image: str, checkout: Checkout) -> None:
    assert checkout.new("scans", image=given).returncode == 0
    scans = rendered(checkout.overlay("scans"))
    assert pod(scans, "imece-worker-scans")["containers"][0]["image"] == image


@pytest.mark.parametrize("name", ["no", "null", "e1", "a", "a-1", "x" * 40])
def test_a_name_stays_the_name_that_it_is(name: str, checkout: Checkout) -> None:
    """Also one that YAML would read as something else."""
    made = checkout.made(name)
    for labels in labels_of_pods(made).values():
        assert labels["app.kubernetes.io/instance"] == name
    assert one(made, "ConfigMap", f"imece-{name}")["data"]["IMECE_QUEUE"] == name


def test_the_next_steps_name_what_there_is(checkout: Checkout) -> None:
    answer = checkout.new("scans", "--namespace", "team-a")
    told = answer.stdout
    names = {name for _, name in identities(rendered(checkout.overlay("scans")))}
    for name in re.findall(r"deploy/(imece-\S+)", told):
        assert name in names
    assert "kubectl apply -k deploy/overlays/scans\n" in told
    assert "patch secret imece-redis --patch-file deploy/overlays/scans/passwords.yaml\n" in told
    assert "rollout restart statefulset/imece-redis\n" in told
    assert "imece enqueue /data/scans/in /data/scans/out --run-id first\n" in told
    assert told.count("-n team-a") == 6
    assert told.endswith("imece scale 20 -n team-a --pipeline scans\n")


# What it refuses


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("Scans", [], "cannot have the name Scans: take small letters"),
        ("a_b", [], "cannot have the name a_b"),
        ("1a", [], "cannot have the name 1a"),
        ("a-", [], "cannot have the name a-"),
        ("x" * 41, [], "40 at most"),
        ("imece", [], "it is the name of the first pipeline"),
        ("redis", [], "cannot have the name redis"),
        ("scans", ["--claim", "A claim"], "--claim: A claim is not the name of a volume claim"),
        ("scans", ["--input", "/data/in"], "--input: /data/in is not a folder of the claim"),
        ("scans", ["--output", "../out"], "--output: ../out is not a folder of the claim"),
        ("scans", ["--output", "a: b"], "--output: a: b is not a folder of the claim"),
        ("scans", ["--image", "x"], "--image: x has no tag"),
        ("scans", ["--image", "x y:1"], "--image: x y:1 is not the name of an image"),
        ("scans", ["--processor", "lib/scans.py:f"], "IMECE_PROCESSOR"),
        ("scans", ["--namespace", "No"], "IMECE_KUBE_NAMESPACE"),
        ("scans", ["--limit", "0"], "--limit"),
    ],
)
def test_what_cannot_be_a_pipeline_is_refused_and_nothing_is_written(
    name: str, options: list[str], says: str, checkout: Checkout
) -> None:
    before = sorted(checkout.folder.rglob("*"))
    answer = checkout.new(name, *options)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert says in answer.stderr
    assert sorted(checkout.folder.rglob("*")) == before


def test_a_pipeline_is_not_written_over(checkout: Checkout) -> None:
    assert checkout.new("scans").returncode == 0
    before = [file.read_text() for file in sorted(checkout.overlay("scans").iterdir())]
    answer = checkout.new("scans")
    assert answer.returncode == 2
    assert "deploy/overlays/scans is there already: take another name" in answer.stderr
    assert [file.read_text() for file in sorted(checkout.overlay("scans").iterdir())] == before


def test_where_there_is_no_checkout_it_says_so(checkout: Checkout) -> None:
    shutil.rmtree(checkout.folder / "deploy")
    answer = checkout.new("scans")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "call this in a checkout, or name one: --directory PATH/deploy/overlays/scans" in (
        answer.stderr
    )
    elsewhere = Checkout(checkout.folder / "clone")
    answer = checkout.new("scans", "--directory", str(elsewhere.overlay("scans")))
    assert answer.returncode == 0, answer.stderr
    assert rendered(elsewhere.overlay("scans"))


# Which pipeline a command means


def test_the_pipelines_name_is_that_of_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def workers(**given: Any) -> tuple[str, str]:
        settings = load(**given)
        return settings.deployment, settings.scaled_object

    assert workers() == ("imece-worker", "imece-worker")
    assert workers(queue="scans") == ("imece-worker-scans", "imece-worker-scans")
    assert workers(queue="Night_2") == ("imece-worker", "imece-worker")  # no pipeline has it
    monkeypatch.setenv("IMECE_QUEUE", "text")
    assert workers() == ("imece-worker-text", "imece-worker-text")
    monkeypatch.setenv("IMECE_DEPLOYMENT", "ours")
    assert workers() == ("ours", "imece-worker-text")


def test_a_command_changes_the_pipeline_that_is_named(
    workbench: Workbench, cluster: ApiServer
) -> None:
    _, scans = cluster.add_pipeline("scans")

    def limits() -> tuple[int, int]:
        both: list[Object] = [cluster.read(scans), cluster.scaled]
        first, second = (one["spec"]["maxReplicaCount"] for one in both)
        return first, second

    def scale(*words: str, **settings: Any) -> None:
        answer = workbench.imece("scale", *words, kubeconfig=os.environ["KUBECONFIG"], **settings)
        assert answer.returncode == 0, answer.stderr

    scale("7", "--pipeline", "scans")
    assert limits() == (7, 20)
    scale("8", queue="scans")
    assert limits() == (8, 20)
    for wrong in ("Scans", "", "a b"):
        answer = workbench.imece("scale", "5", "--pipeline", wrong)
        assert answer.returncode == 2
        assert "is not the name of a pipeline" in answer.stderr
    # As in the producer's pod of the pipeline scans.
    here = {"queue": "scans", "deployment": "imece-worker-scans"}
    scale("9", "--pipeline", "imece", scaled_object="imece-worker-scans", **here)
    assert limits() == (8, 9)


def test_the_rights_in_the_docs_are_those_that_start_sh_gives() -> None:
    (block,) = (
        block
        for block in blocks_of_code(ROOT / "docs" / "how-to" / "own-redis.md", "text")
        if "~imece:" in block
    )
    given = re.findall(
        r"^user (\w+)\$2 on \S+ (.*)$", (DEPLOY / "redis/start.sh").read_text(), re.M
    )
    told = re.findall(r"^ *user (\w+) on \S+ (.*)$", block, re.MULTILINE)
    assert told == [(user, rules.replace("$1", "QUEUE")) for user, rules in given]
    assert len(told) == 2
