"""Airflow's connections as imece's settings; what a task does that is killed or waits too long."""

import json
from typing import Any

import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowFailException, TaskDeferralTimeout

from imece.connection import address
from imece.errors import UsageError
from imece.run.store import Run
from imece_producer.airflow import ImeceRunOperator
from imece_producer.airflow.connection import settings_of
from imece_producer.airflow.fields import allowed_failures, globs, switch, whole
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
    for wrong in ("0", "many", "1.5"):
        with pytest.raises(UsageError, match="buckets"):
            whole(wrong, "buckets")
    with pytest.raises(UsageError, match="takes true or false"):
        switch("perhaps", "hidden")


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


def test_a_process_told_to_end_cancels_its_run(connected: Workbench) -> None:
    connected.files(1)
    connected.enqueue()
    run = Run(connected.redis, "run")
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
    run = Run(connected.redis, "run")
    killed = task(connected)
    generation = run.attach()
    assert generation is not None
    killed._held = (connected.load(), generation)
    run.attach()
    killed.on_kill()
    assert run.state() == "queued"
