"""Airflow's Connections as imece's settings, and its errors as Airflow's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk import Connection
from pydantic import SecretStr

from imece.connection import reachable
from imece.errors import ImeceError, ServiceError, SettingsError
from imece.settings import Settings, load


def settings_of(connection: Connection | None, **overrides: Any) -> Settings:
    """The settings of this process, with Redis as a Connection names it.

    Host, port, login and password are the Connection's; of its extra, `db`, `ssl` and what starts
    with `ssl_` count, as in Airflow's own Redis hook. A host that starts with a slash is a socket.

    Args:
        connection: None: Redis, too, is the one the environment names.

    Raises:
        SettingsError: says which setting, or which Connection, is wrong.
    """
    if connection is None:
        return load(**overrides)
    try:
        settings = load(redis_url=_url(connection), **overrides)
    except SettingsError as error:
        raise SettingsError(f"Airflow connection {connection.conn_id}: {error}") from None
    # Nothing of another server that the environment may name.
    return settings.model_copy(
        update={
            "redis_username": connection.login or None,
            "redis_password": SecretStr(connection.password) if connection.password else None,
            "redis_sentinels": None,
            "redis_sentinel_master": None,
        }
    )


def _url(connection: Connection) -> str:
    extra = connection.extra_dejson
    host = connection.host or "localhost"
    if host.startswith("/"):
        return f"unix://{quote(host)}"
    if ":" in host:
        host = f"[{host}]"  # an IPv6 address
    scheme = "rediss" if extra.get("ssl") else "redis"
    url = f"{scheme}://{host}:{connection.port or 6379}/{extra.get('db') or 0}"
    options = {name: value for name, value in extra.items() if name.startswith("ssl_")}
    return f"{url}?{urlencode(options)}" if options and scheme == "rediss" else url


@contextmanager
def airflow_errors(
    settings: Settings | None = None, redis_conn_id: str | None = None
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
    except ServiceError as error:
        raise AirflowException(_with_source(error, redis_conn_id)) from None
    except ImeceError as error:
        raise AirflowFailException(_with_source(error, redis_conn_id)) from None


def _with_source(error: ImeceError, redis_conn_id: str | None) -> str:
    if redis_conn_id is None or "IMECE_REDIS" not in str(error):
        return str(error)
    return f"{error} (here: the fields of the Airflow connection {redis_conn_id})"
