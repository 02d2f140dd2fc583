"""Where the cluster is and who we are there: a pod's service account, or a kubeconfig.

The package `kubernetes` is imported where it is used: it is slow to import.
"""

import base64
import binascii
import importlib.util
import json
import logging
import os
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imece.errors import SettingsError
from imece.settings import Settings
from imece_producer.display import seconds

ADDRESS = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
"""The variables by which Kubernetes tells a pod where its API server is."""

DEFAULT_FILE = "~/.kube/config"

KINDS = ("clusters", "contexts", "users")
PATHS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
"""What may be relative in a kubeconfig, beside the command of a plugin that logs in."""


@dataclass(frozen=True)
class Access:
    """A way to a cluster.

    Attributes:
        how: whose rights are used, fit for a message.
        configuration: a `kubernetes.client.Configuration`.
        in_pod: by the pod's service account, not by a kubeconfig.
    """

    how: str
    namespace: str
    configuration: Any
    in_pod: bool

    @property
    def token(self) -> str | None:
        """The bearer token. Never to be shown."""
        for setting in self.configuration.auth_settings().values():
            kind, _, token = str(setting["value"] or "").partition(" ")
            if kind.lower() == "bearer":
                return token
        return None


def is_named(settings: Settings) -> bool:
    """Whether a cluster is meant without being asked for: we are in a pod, or a setting names it.

    A kubeconfig alone says nothing: many a laptop has one that has nothing to do with imece.
    """
    named = settings.kubeconfig or settings.kube_context or settings.kube_namespace
    return in_pod(settings) or bool(named)


def in_pod(settings: Settings) -> bool:
    return all(os.environ.get(name) for name in ADDRESS) and _token_file(settings).is_file()


def find(settings: Settings) -> Access:
    """The way to the cluster: the kubeconfig or the context the settings name, else the pod's
    service account, else the kubeconfig's current context.

    Raises:
        SettingsError: there is none, or it cannot be used; says what to do.
    """
    if importlib.util.find_spec("kubernetes") is None:
        raise SettingsError(
            "a cluster needs the package kubernetes, which is not installed",
            "pip install 'imece[cluster]'",
        )
    if in_pod(settings) and not (settings.kubeconfig or settings.kube_context):
        access = _of_pod(settings)
    else:
        access = _of_kubeconfig(settings)
    token = access.token
    if token and not (token.isascii() and token.isprintable()):
        raise SettingsError(
            f"the token of {access.how} has a line break, or a character that no token has",
            "write it anew: one line, with nothing after it",
        )
    if settings.kube_ca_file:
        _check_ca(settings.kube_ca_file)
        access.configuration.ssl_ca_cert = str(settings.kube_ca_file)
        access.configuration.verify_ssl = True
    return access


def _check_ca(file: Path) -> None:
    if not file.is_file():
        raise SettingsError(f"IMECE_KUBE_CA_FILE: there is no file {file}")
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:
        raise SettingsError(
            f"IMECE_KUBE_CA_FILE: {file} holds no certificate ({error.strerror})",
            "it must be a PEM file, with BEGIN CERTIFICATE in it",
        ) from None


def _token_file(settings: Settings) -> Path:
    return settings.service_account_dir / "token"


def _of_pod(settings: Settings) -> Access:
    from kubernetes.client import Configuration
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.incluster_config import InClusterConfigLoader

    folder = settings.service_account_dir
    configuration = Configuration()
    try:
        InClusterConfigLoader(str(_token_file(settings)), str(folder / "ca.crt")).load_and_set(
            configuration
        )
        namespace = settings.kube_namespace or (folder / "namespace").read_text().strip()
    except (ConfigException, OSError, ValueError) as error:
        raise SettingsError(
            f"this pod's service account cannot be used ({error})",
            f"its token, CA and namespace are expected in {folder}",
        ) from None
    return Access("this pod's service account", namespace, configuration, in_pod=True)


def _of_kubeconfig(settings: Settings) -> Access:
    from kubernetes.client import Configuration
    from kubernetes.config import load_kube_config_from_dict
    from kubernetes.config.config_exception import ConfigException

    given = settings.kubeconfig or os.environ.get("KUBECONFIG") or DEFAULT_FILE
    if not any(file.exists() for file in _files(given)):
        raise _nothing_found(settings, given)
    merged = _merged(given)
    name, context = _chosen(settings.kube_context, merged, given)
    user = _named(merged.get("users", []), context.get("user"), "user") or {}
    _check_plugin(user.get("exec") or {}, name, given)
    configuration = Configuration()
    try:
        with _complaints() as complaints:
            load_kube_config_from_dict(merged, name, configuration, persist_config=False)
    except (ConfigException, OSError, ValueError, TypeError) as error:
        raise SettingsError(
            f"the context {name} of the kubeconfig {given} cannot be used ({_one_line(error)})",
            f"`kubectl --context {name} get pods` should work",
        ) from None
    access = Access(
        f"the context {name} of {given}",
        settings.kube_namespace or context.get("namespace") or "default",
        configuration,
        in_pod=False,
    )
    if "exec" in user and access.token is None and not configuration.cert_file:
        said = f" ({_one_line(complaints[-1])})" if complaints else ""
        raise SettingsError(
            f"{user['exec'].get('command')}, which logs in for {access.how}, failed{said}",
            f"log in again; `kubectl --context {name} get pods` should work",
        )
    return access


def _files(given: str) -> list[Path]:
    return [Path(name).expanduser() for name in given.split(os.pathsep) if name]


def _merged(given: str) -> dict[str, Any]:
    """The files that KUBECONFIG names as one, the way kubectl reads them: of what several of them
    say the first counts, and relative paths are relative to the file they stand in."""
    import yaml

    merged: dict[str, Any] = {}
    try:
        for file in (file for file in _files(given) if file.exists()):
            with file.open(encoding="utf-8") as stream:
                read: dict[str, Any] = yaml.safe_load(stream) or {}
            for kind in KINDS:
                for item in read.pop(kind, None) or ():
                    _make_absolute(item.get(kind.removesuffix("s")) or {}, file.parent.absolute())
                    known = merged.setdefault(kind, [])
                    if all(one.get("name") != item.get("name") for one in known):
                        known.append(item)
            for name, value in read.items():
                merged[name] = merged.get(name) or value
    except (yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"the kubeconfig {given} cannot be read ({_one_line(error)})",
            "`kubectl config view` should show it",
        ) from None
    return merged


def _make_absolute(entry: dict[str, Any], folder: Path) -> None:
    for name in PATHS:
        if entry.get(name):
            entry[name] = str(folder / entry[name])
    plugin = entry.get("exec") or {}
    if os.sep in (plugin.get("command") or ""):
        plugin["command"] = str(folder / plugin["command"])


def _named(items: list[dict[str, Any]], name: str | None, kind: str) -> dict[str, Any] | None:
    """What a kubeconfig's list says under a name."""
    return next((item.get(kind) or {} for item in items if item.get("name") == name), None)


def _chosen(wanted: str | None, merged: dict[str, Any], given: str) -> tuple[str, dict[str, Any]]:
    """The context that is meant: its name, and what it says."""
    known = ", ".join(sorted(str(one.get("name")) for one in merged.get("contexts", []))) or "none"
    name = wanted or merged.get("current-context")
    if not name:
        raise SettingsError(
            f"the kubeconfig {given} has no current context",
            f"name one with --context or IMECE_KUBE_CONTEXT; it has: {known}",
        )
    context = _named(merged.get("contexts", []), name, "context")
    if context is None:
        raise SettingsError(
            f"the kubeconfig {given} has no context {name}",
            f"name another with --context or IMECE_KUBE_CONTEXT; it has: {known}",
        )
    return name, context


def _check_plugin(plugin: dict[str, Any], context: str, given: str) -> None:
    """Says what the library would only log: the program that logs in is not there."""
    command = plugin.get("command")
    if not command or shutil.which(command):
        return
    raise SettingsError(
        f"the context {context} of {given} logs in by the program {command}, which is not here",
        _one_line(plugin.get("installHint") or f"install {command}, or put it on the PATH"),
    )


def _nothing_found(settings: Settings, given: str) -> SettingsError:
    unset = [name for name in ADDRESS if not os.environ.get(name)]
    if _token_file(settings).is_file() and unset:
        return SettingsError(
            f"no cluster configuration found: this looks like a pod, but the service host/port is "
            f"not set ({' and '.join(unset)}), and there is no kubeconfig at {given}",
            "something has cleared the environment (sudo, env -i, a user switch): pass them on",
        )
    if not unset:
        return SettingsError(
            f"no cluster configuration found: this is a pod without a service account token "
            f"({_token_file(settings)}), and there is no kubeconfig at {given}",
            "set automountServiceAccountToken: true for the pod, or mount a kubeconfig and "
            "name it in KUBECONFIG",
        )
    return SettingsError(
        f"no cluster configuration found: this is not a pod (service host/port is not set), and "
        f"there is no kubeconfig at {given}",
        "name one in KUBECONFIG, or get one from your cluster (`oc login`, "
        "`aws eks update-kubeconfig`, `gcloud container clusters get-credentials`, …)",
    )


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the library logs on the root logger inside, in place of raising it."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear(logging.ERROR)
    logging.getLogger().addHandler(ear)
    try:
        yield heard
    finally:
        logging.getLogger().removeHandler(ear)


def _one_line(what: object) -> str:
    return " ".join(str(what).split())[:300]


def expiry(token: str) -> float | None:
    """When a token expires, in epoch seconds, if it is a JWT that says so."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (binascii.Error, ValueError, KeyError, TypeError):
        return None


def token_flaw(token: str | None) -> str | None:
    """What a token's own words say against it, or None; never a word of the token itself."""
    ends = expiry(token) if token else None
    if ends is None or ends > time.time():
        return None
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ends))
    return f"the token has expired {seconds(time.time() - ends)} ago ({when})"
