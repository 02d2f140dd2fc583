"""Airflow's Connections as imece's settings, and imece's errors as Airflow's."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
)
from airflow.sdk import BaseHook, Connection
from asgiref.sync import sync_to_async
from pydantic import SecretStr

from imece.connection import reachable
from imece.errors import ImeceError, SettingsError
from imece.settings import Settings, load
from imece_producer.airflow import fields

OPTIONS = {
    "--suffix '": "suffix '",
    "--timeout ": "file_timeout ",
    "--from-file ": "from_file ",
    "take another --run-id": "take another run_id",
}
"""What stands in imece's messages -> the field of `ImeceRunOperator`."""

REDIS_FIELDS = {
    "IMECE_REDIS_URL: an option after ?": "extra of {}: an option that starts with ssl_",
    "IMECE_REDIS_USERNAME and IMECE_REDIS_PASSWORD": "login and password of {}",
    "IMECE_REDIS_CA_FILE": "ssl_ca_certs in the extra of {}",
    "IMECE_REDIS_URL": "host and port of {}",
}
"""What stands in imece's messages -> the field of the Airflow connection to Redis."""

CLUSTER_FIELDS = {
    "log in again, as you did when you got the kubeconfig": "log in again",
    "log in again": "make a new token (`oc create token`, or `kubectl create token`), and put it "
    "into the kubeconfig of {}",
    "--context or IMECE_KUBE_CONTEXT": "cluster_context in the extra of {}",
    "--namespace or IMECE_KUBE_NAMESPACE": "namespace in the extra of {}",
    "--namespace": "namespace in the extra of {}",
    "name one in KUBECONFIG": "name one in kube_config_path in the extra of {}",
}
"""The same for the Airflow connection to Kubernetes."""


def find(conn_id: str | None) -> Connection | None:
    """The Connection of that id; None for none.

    Raises:
        SettingsError: there is none.
    """
    if conn_id is None:
        return None
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise _missing(conn_id) from None


async def find_async(conn_id: str | None) -> Connection | None:
    """As `find`, from an event loop."""
    if conn_id is None:
        return None
    try:
        return await BaseHook.aget_connection(conn_id)
    except AirflowNotFoundException:
        # `dag.test()` finds what is in Airflow's database by the other way only.
        return await sync_to_async(find)(conn_id)


def _missing(conn_id: str) -> SettingsError:
    return SettingsError(
        f"there is no Airflow connection {conn_id}",
        f"make it in Admin → Connections, or set AIRFLOW_CONN_{conn_id.upper()}",
    )


def settings_of(connection: Connection | None, **overrides: Any) -> Settings:
    """The settings of this process, with Redis as a Connection names it.

    Host, port, login and password are the Connection's; of its extra, `db`, `ssl` and what starts
    with `ssl_` count, as in Airflow's own Redis hook: what the form saves as empty is not set. A
    host that starts with a slash is a socket.

    Args:
        connection: None: Redis, too, is the one the environment names.

    Raises:
        SettingsError: says which setting, or which Connection, is wrong.
    """
    if connection is None:
        return load(**overrides)
    try:
        settings = load(redis_url=_url(connection), **overrides)
    except ImeceError as error:
        raise SettingsError(f"Airflow connection {connection.conn_id}: {error}") from None
    password = fields.words(connection.password)
    # Nothing of another server that the environment may name.
    return settings.model_copy(
        update={
            "redis_username": connection.login or None,
            "redis_password": SecretStr(password) if password else None,
            "redis_sentinels": None,
            "redis_sentinel_master": None,
        }
    )


def _url(connection: Connection) -> str:
    extra = {name: fields.words(value) for name, value in connection.extra_dejson.items()}
    if fields.switch(extra.get("cluster"), "cluster"):
        raise SettingsError("imece does not work with Redis Cluster", "name one server")
    host = connection.host or "localhost"
    if host.startswith("/"):
        return f"unix://{quote(host)}"
    if ":" in host:
        host = f"[{host}]"  # an IPv6 address
    scheme = "rediss" if fields.switch(extra.get("ssl"), "ssl") else "redis"
    database = extra.get("db") or fields.words(connection.schema) or 0  # a URI has it as its path
    url = f"{scheme}://{host}:{connection.port or 6379}/{database}"
    options = {name: value for name, value in extra.items() if name.startswith("ssl_") and value}
    return f"{url}?{urlencode(options)}" if options and scheme == "rediss" else url


@contextmanager
def cluster_settings(connection: Connection | None, settings: Settings) -> Iterator[Settings]:
    """The settings, with the cluster as a Kubernetes Connection names it.

    Of the Connection's extra count `kube_config_path` or `kube_config`, `cluster_context` and
    `namespace`; without the first two, a pod's service account (`in_cluster`) or KUBECONFIG.

    Raises:
        SettingsError: the Connection says two things at once.
    """
    extra = _cluster_extra(connection)
    update = {
        "kubeconfig": extra.get("kube_config_path"),
        "kube_context": extra.get("cluster_context"),
        "kube_namespace": extra.get("namespace"),
    }
    text = extra.get("kube_config")
    if sum(map(bool, (update["kubeconfig"], text, extra.get("in_cluster")))) > 1:
        raise SettingsError(
            f"Airflow connection {connection.conn_id if connection else ''}: in_cluster, "
            "kube_config_path and kube_config exclude each other",
            "keep one of them",
        )
    with ExitStack() as stack:
        if text:
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".kubeconfig"))
            file.write(text if isinstance(text, str) else json.dumps(text))
            file.flush()
            update["kubeconfig"] = file.name
        named = {name: value for name, value in update.items() if value}
        yield settings.model_copy(update=named)


def _cluster_extra(connection: Connection | None) -> dict[str, Any]:
    """The extra, whose fields older versions of Airflow have stored under longer names."""
    prefix = "extra__kubernetes__"
    given = connection.extra_dejson if connection is not None else {}
    return {name.removeprefix(prefix): value for name, value in given.items()}


def names_cluster(connection: Connection | None) -> bool:
    """Whether a cluster is meant, though no field of a task asks for one: the Connection is there,
    and is more than the way to a kubeconfig that nobody has filled."""
    extra = {name: value for name, value in _cluster_extra(connection).items() if value}
    path = extra.pop("kube_config_path", None)
    if extra.keys() & {"kube_config", "in_cluster", "cluster_context", "namespace"}:
        return True
    try:
        return path is not None and Path(path).stat().st_size > 0
    except OSError:
        return True  # that it cannot be read is to be said


def in_airflow(
    text: str, redis_conn_id: str | None = None, kubernetes_conn_id: str | None = None
) -> str:
    """A message of imece, with the fields of operators and Airflow's Connections in place of its
    options and settings."""
    for option, field in OPTIONS.items():
        text = text.replace(option, field)
    for conn_id, names in ((redis_conn_id, REDIS_FIELDS), (kubernetes_conn_id, CLUSTER_FIELDS)):
        if conn_id is not None:
            for words, field in names.items():
                text = text.replace(words, field.format(f"the Airflow connection {conn_id}"))
    return text


@contextmanager
def airflow_errors(
    settings: Settings | None = None,
    redis_conn_id: str | None = None,
    kubernetes_conn_id: str | None = None,
) -> Iterator[None]:
    """Turns imece's errors into Airflow's: one sentence, no traceback of ours.

    What waiting can fix (a service is out of reach) may be retried; the rest fails at once.
    """
    try:
        if settings is None:
            yield
            return
        with reachable(settings):
            yield
    except ImeceError as error:
        kind = AirflowException if error.may_pass else AirflowFailException
        raise kind(in_airflow(str(error), redis_conn_id, kubernetes_conn_id)) from None
