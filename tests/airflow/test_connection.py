"""Airflow's connections as imece's settings; what a task does that is killed or waits too long."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.redis.hooks.redis import RedisHook
from airflow.sdk import Connection
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    TaskDeferralTimeout,
    TaskDeferred,
)

import imece.connection
from imece.connection import address, connect
from imece.errors import SettingsError, UsageError
from imece.run.store import Run
from imece_producer.airflow import ImeceRunOperator
from imece_producer.airflow.connection import in_airflow, settings_of
from imece_producer.airflow.fields import (
    allowed_failures,
    assignments,
    globs,
    processor,
    switch,
    whole,
)
from tests.conftest import Workbench


def connection(**fields: Any) -> Connection:
    extra = fields.pop("extra", {})
    return Connection(conn_id="c", conn_type="redis", extra=json.dumps(extra), **fields)


@pytest.mark.parametrize(
    ("given", "where"),
    [
        (connection(host="r.example"), "redis://r.example:6379/0"),
        (connection(host="r", port=1234, extra={"db": 3}), "redis://r:1234/3"),
        (connection(host="r", extra={"ssl": True}), "rediss://r:6379/0"),
        (connection(host="/run/redis.sock"), "unix:///run/redis.sock"),
        (Connection(conn_id="c", uri="redis://me:p%2Fw@r:1/2"), "redis://r:1/2"),
        (Connection(conn_id="c", uri="redis://r/?ssl=false"), "redis://r:6379/0"),
    ],
)
def test_where_redis_is(given: Connection, where: str) -> None:
    assert address(settings_of(given)) == where


def test_login_and_password_are_the_connection_s_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMECE_REDIS_PASSWORD", "of another server")
    assert settings_of(connection(host="r")).redis_password is None
    settings = settings_of(connection(host="r", login="me", password="p@ss/word"))
    assert settings.redis_username == "me"
    assert settings.redis_password is not None
    assert settings.redis_password.get_secret_value() == "p@ss/word"
    assert "p@ss" not in str(settings.redis_url.get_secret_value())


def test_a_private_ca_goes_with_tls() -> None:
    extra = {"ssl": True, "ssl_ca_certs": "/ca.crt", "ssl_check_hostname": False}
    url = settings_of(connection(host="r", extra=extra)).redis_url.get_secret_value()
    assert url == "rediss://r:6379/0?ssl_ca_certs=%2Fca.crt&ssl_check_hostname=False"


FORM = {
    "db": 0, "cluster": False, "startup_nodes": None, "ssl": True, "ssl_cert_reqs": "required",
    "ssl_ca_certs": "", "ssl_keyfile": None, "ssl_certfile": None, "ssl_check_hostname": False,
}  # fmt: skip
"""What Airflow's form saves for a connection with "Enable SSL" and nothing else."""


def test_a_connection_that_the_form_saved_connects_as_airflow_s_own_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"conn_type": "redis", "host": "r", "password": "", "extra": FORM}
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps(given))
    theirs = RedisHook("c").get_conn().connection_pool.connection_kwargs
    saved = connection(host="r", password="", extra=FORM)
    ours = connect(settings_of(saved)).connection_pool.connection_kwargs
    wanted = {name: theirs[name] for name in FORM if name.startswith("ssl_") and theirs[name]}
    assert {name: ours[name] for name in wanted} == wanted
    assert [ours.get(name) for name in ("ssl_keyfile", "ssl_certfile", "password")] == [None] * 3
    assert not ours["ssl_check_hostname"]


def test_a_redis_cluster_is_refused_in_a_sentence() -> None:
    with pytest.raises(SettingsError, match="connection c: imece does not work with Redis Cluster"):
        settings_of(connection(host="r", extra={"cluster": True}))


def test_messages_about_redis_name_the_connection_s_fields() -> None:
    source = Path(imece.connection.__file__).read_text()
    messages = [line for line in source.splitlines() if "IMECE_REDIS_" in line and '"' in line]
    without_sentinels = [
        line for line in messages if "SENTINEL" not in line and "takes" not in line
    ]
    assert len(without_sentinels) >= 4
    for line in without_sentinels:
        told = in_airflow(line, "imece_redis")
        assert "IMECE_REDIS" not in told or "there is no file" in line
        assert "of the Airflow connection imece_redis" in told
    assert "IMECE" not in in_airflow(SAID, "imece_redis", "imece_kubernetes")
    assert re.search("oc create token.*of the Airflow connection imece_kubernetes",
                     in_airflow(SAID, "imece_redis", "imece_kubernetes"))  # fmt: skip


SAID = "log in again, as you did when you got the kubeconfig; --namespace or IMECE_KUBE_NAMESPACE"


@pytest.mark.parametrize(
    ("given", "allowed"),
    [(0, 0), ("0", 0), (3, 3), ("7", 7), ("1%", 10), (0.005, 5), ("100%", 1000), ("None", -1)],
)
def test_how_many_files_may_fail(given: Any, allowed: int) -> None:
    if allowed < 0:
        with pytest.raises(UsageError):
            allowed_failures(given, 1000)
    else:
        assert allowed_failures(given, 1000) == allowed


def test_fields_are_read_as_templates_leave_them() -> None:
    assert whole("None", "buckets") is whole("", "buckets") is None
    assert whole(" 8 ", "buckets") == 8
    assert globs("*.csv\n\n /x \n") == globs(["*.csv", "/x"]) == ["*.csv", "/x"]
    assert switch("True", "hidden") is switch(True, "hidden") is True
    assert switch("None", "hidden") is False
    assert processor("None") is None
    assert processor(" a.b:c ") == "a.b:c"
    with pytest.raises(UsageError, match=r"processor 'p\.py': takes package\.module:function"):
        processor("p.py")
    for wrong in ("0", "many", "1.5"):
        with pytest.raises(UsageError, match="buckets"):
            whole(wrong, "buckets")
    with pytest.raises(UsageError, match="takes true or false"):
        switch("perhaps", "hidden")


def test_parameters_of_a_processor_are_a_mapping_or_lines() -> None:
    wanted = {"mode": "fast", "size": 32}
    assert assignments("mode=fast\n size=32 \n") == wanted
    assert assignments({"size": "32", "mode": "fast"}) == wanted
    assert list(assignments({"size": 32, "mode": "fast"})) == ["mode", "size"]
    assert assignments({"a": (1, [None]), "b": '"32"'}) == {"a": [1, [None]], "b": "32"}
    empty: list[dict[str, int] | str | None] = [None, "", "None", {}]
    for nothing in empty:
        assert assignments(nothing) == {}
    with pytest.raises(UsageError, match="set 'a b': this is not the name"):
        assignments({"a b": 1})
    with pytest.raises(UsageError, match="set cannot be kept as JSON"):
        assignments({"a": {1, 2}})


def task(workbench: Workbench) -> ImeceRunOperator:
    return ImeceRunOperator(
        task_id="run",
        run_id="run",
        input_dir=str(workbench.source),
        output_dir=str(workbench.target),
    )


def test_a_wait_that_takes_too_long_takes_the_run_with_it(connected: Workbench) -> None:
    connected.files(1)
    connected.enqueue()
    with pytest.raises(TaskDeferralTimeout):
        task(connected).resume_execution("__fail__", {"error": "Trigger timeout"}, {})
    assert connected.status().state == "cancelled"
    with pytest.raises(AirflowFailException, match="cancelled with 1 file left: clear this task"):
        task(connected).resume({}, {"run": "run", "state": "cancelled"})


def test_a_connection_that_is_missing_fails_the_task_at_once(connected: Workbench) -> None:
    missing = task(connected)
    missing.redis_conn_id = "nobody"
    with pytest.raises(
        AirflowFailException, match="there is no Airflow connection nobody: make it"
    ):
        missing.execute({})


def test_a_wrong_password_fails_the_task_at_once_and_names_the_field(connected: Workbench) -> None:
    connected.redis.config_set("requirepass", "right")
    try:
        with pytest.raises(
            AirflowFailException, match="login and password of the Airflow connection imece_redis"
        ):
            task(connected).execute({})
    finally:
        connected.redis.config_set("requirepass", "")


def test_what_the_trigger_could_not_wait_for_is_tried_again_only_if_it_may_pass(
    connected: Workbench,
) -> None:
    event = {"run": "run", "error": "why"}
    with pytest.raises(AirflowFailException, match="why"):
        task(connected).resume({}, {**event, "may_pass": False})
    for older_version in ({}, {"may_pass": True}):
        with pytest.raises(AirflowException, match="why") as raised:
            task(connected).resume({}, {**event, **older_version})
        assert not isinstance(raised.value, AirflowFailException)


def test_a_run_that_ended_is_not_failed_by_a_redis_that_is_away_at_the_resume(
    connected: Workbench,
) -> None:
    connected.files(2)
    connected.enqueue()
    connected.worker()
    connected.ended()
    connected.server.stop()
    with pytest.raises(TaskDeferred) as waits:
        task(connected).resume({}, {"run": "run", "state": "done"})
    connected.server.start()
    assert waits.value.method_name == "resume"
    assert waits.value.trigger.serialize()[1]["generation"] == "0"
    assert (
        task(connected).resume({"outlet_events": {}}, {"run": "run", "state": "done"})["done"] == 2
    )


def test_a_task_that_was_slow_to_start_does_not_come_back_sooner_than_that(
    connected: Workbench,
) -> None:
    """A busy scheduler hears late that the task's process has ended."""
    connected.files(1)
    began = datetime.now(UTC) - timedelta(seconds=24)
    with pytest.raises(TaskDeferred) as waits:
        task(connected).execute({"ti": SimpleNamespace(start_date=began)})
    assert 24 <= waits.value.trigger.serialize()[1]["shortest_wait"] < 60


def test_its_time_limit_counts_from_its_start_however_often_it_waits(connected: Workbench) -> None:
    connected.files(1)
    limited = task(connected)
    limited.execution_timeout = timedelta(minutes=5)
    began = datetime.now(UTC) - timedelta(minutes=3)
    context = {"ti": SimpleNamespace(start_date=began)}
    with pytest.raises(TaskDeferred) as waits:
        limited.execute(context)
    assert timedelta(minutes=1) < waits.value.timeout <= timedelta(minutes=2)
    connected.server.stop()
    with pytest.raises(TaskDeferred) as waits:
        limited.resume(context, {"run": "run", "state": "done"})
    connected.server.start()
    assert waits.value.timeout <= timedelta(minutes=2)


def test_a_limit_that_cannot_be_set_is_found_before_anything_is_enqueued(
    connected: Workbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connected.files(1)
    extra = {"kube_config_path": str(tmp_path / "none")}
    given = {"conn_type": "kubernetes", "extra": extra}
    limited = task(connected)
    limited.max_replicas = 5
    with pytest.raises(AirflowFailException, match="no Airflow connection imece_kubernetes"):
        limited.execute({})
    monkeypatch.setenv("AIRFLOW_CONN_IMECE_KUBERNETES", json.dumps(given))
    with pytest.raises(AirflowFailException, match="there is no kubeconfig at"):
        limited.execute({})
    assert Run(connected.redis, "imece", "run").state() is None


def test_a_process_told_to_end_cancels_its_run(connected: Workbench) -> None:
    connected.files(1)
    connected.enqueue()
    run = Run(connected.redis, "imece", "run")
    killed = task(connected)
    killed.on_kill()
    assert run.state() == "queued"  # it had not attached to it yet
    generation = run.attach()
    assert generation is not None
    killed._held = (connected.load(), generation)
    killed.on_kill()
    assert run.state() == "cancelled"


def test_a_process_told_to_end_leaves_a_run_that_another_waits_for(connected: Workbench) -> None:
    connected.files(1)
    connected.enqueue()
    run = Run(connected.redis, "imece", "run")
    killed = task(connected)
    generation = run.attach()
    assert generation is not None
    killed._held = (connected.load(), generation)
    run.attach()
    killed.on_kill()
    assert run.state() == "queued"
