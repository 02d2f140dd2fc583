"""Settings come from three places in a fixed order, and a wrong one is named without its value."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from imece import settings
from imece.errors import SettingsError
from imece.settings import Settings, load
from tests.conftest import ROOT

PASSWORD = "hunter2"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory and a secrets directory of the test's own."""
    (tmp_path / "secrets").mkdir()
    monkeypatch.setattr(settings, "SECRETS_DIR", str(tmp_path / "secrets"))
    monkeypatch.chdir(tmp_path)


def secret(name: str, value: str) -> None:
    Path("secrets", name).write_text(value)


def message_of(**given: object) -> str:
    with pytest.raises(SettingsError) as error:
        load(**given)
    return str(error.value)


def test_every_setting_but_the_processor_has_a_default() -> None:
    found = load()
    assert found.redis_url.get_secret_value() == "redis://localhost:6379/0"
    assert (found.queue, found.retries, found.lease) == ("imece", 2, 15.0)
    assert (found.processor, found.command, found.redis_password) == (None, None, None)


def test_the_environment_wins_over_the_env_file_over_the_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("imece_queue", "imece_retries", "imece_lease"):
        secret(name, "7")
    Path(".env").write_text("IMECE_QUEUE=from-env-file\nIMECE_RETRIES=8\n")
    monkeypatch.setenv("IMECE_QUEUE", "from-environment")
    found = load()
    assert (found.queue, found.retries, found.lease) == ("from-environment", 8, 7.0)


def test_the_command_line_wins_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMECE_QUEUE", "from-environment")
    assert load(queue="from-command-line").queue == "from-command-line"
    assert load(queue=None).queue == "from-environment"


@pytest.mark.parametrize("name", ["IMECE_REDIS_PASSWORD", "imece_redis_password"])
def test_a_secret_is_a_file_of_the_variables_name(name: str) -> None:
    secret(name, f"{PASSWORD}\n")
    password = load().redis_password
    assert password is not None
    assert password.get_secret_value() == PASSWORD


def test_secrets_are_read_as_kubernetes_mounts_them() -> None:
    """Files are links into a directory that is a link, so that all change at once."""
    Path("secrets/..2026").mkdir()
    secret("..2026/IMECE_REDIS_PASSWORD", PASSWORD)
    Path("secrets/..data").symlink_to("..2026")
    Path("secrets/IMECE_REDIS_PASSWORD").symlink_to("..data/IMECE_REDIS_PASSWORD")
    password = load().redis_password
    assert password is not None
    assert password.get_secret_value() == PASSWORD


def test_the_secrets_directory_can_be_elsewhere(tmp_path: Path) -> None:
    secret("IMECE_QUEUE", "from-secret")
    script = "from imece.settings import load; print(load().queue)"
    environment = {**os.environ, "IMECE_SECRETS_DIR": str(tmp_path / "secrets")}
    environment["PYTHONPATH"] = str(ROOT)
    answer = subprocess.check_output([sys.executable, "-c", script], env=environment, text=True)
    assert answer == "from-secret\n"


def test_a_secrets_directory_that_is_not_there_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "SECRETS_DIR", "nowhere")
    assert load().queue == "imece"


@pytest.mark.parametrize(
    ("variable", "value", "takes"),
    [
        ("IMECE_RETRIES", "many", "valid integer"),
        ("IMECE_RETRIES", "-1", "greater than or equal to 0"),
        ("IMECE_RETRIES", "101", "less than or equal to 100"),
        ("IMECE_FILE_TIMEOUT", "0", "greater than 0"),
        ("IMECE_FILE_TIMEOUT", "inf", "finite"),
        ("IMECE_FILE_TIMEOUT", "nan", "finite"),
        ("IMECE_LEASE", "1", "greater than or equal to 3"),
        ("IMECE_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("IMECE_LOG_FORMAT", "xml", "'human' or 'json'"),
        ("IMECE_QUEUE", "a b", "[A-Za-z0-9_-]"),
        ("IMECE_QUEUE", "", "[A-Za-z0-9_-]"),
        ("IMECE_PROCESSOR", "module", "package.module:function"),
        ("IMECE_PROCESSOR", "./p.py:f", "takes package.module:function, not a file: p:f"),
        ("IMECE_PROCESSOR", "/a/b/p.py:f", "PYTHONPATH=/a/b"),
        ("IMECE_PROCESSOR", "/a/b/p.py", "not a file: p:FUNCTION, and"),
        ("IMECE_COMMAND", "sort {input} > {output}", "> is for a shell"),
        ("IMECE_COMMAND", "sort {input} > {output}", "--stdout (IMECE_COMMAND_STDOUT=true)"),
        ("IMECE_COMMAND", "zcat {input} | wc", "--shell 'sort"),
        ("IMECE_COMMAND", "sort {input} 2>log", "2>log is for a shell"),
        ("IMECE_COMMAND", "zcat {input} | wc", "| is for a shell"),
        ("IMECE_COMMAND", "a {input} && b", "&& is for a shell"),
        ("IMECE_COMMAND", "a {input}; b", "{input}; is for a shell"),
        ("IMECE_COMMAND", "a 'b {input}", "a quotation is not closed"),
        ("IMECE_REDIS_URL", "http://localhost", "redis://, rediss:// or unix://"),
        ("IMECE_REDIS_URL", "redis://localhost/zero", "a number as database"),
        ("IMECE_FILES_PER_JOB", "0", "greater than or equal to 1"),
        ("IMECE_MEMORY_LIMIT", "1", "greater than or equal to 64"),
        ("IMECE_RESULT_TTL", "0", "greater than or equal to 60"),
    ],
)
def test_a_wrong_value_names_its_setting_and_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, takes: str
) -> None:
    monkeypatch.setenv(variable, value)
    message = message_of()
    assert message.startswith(f"{variable}: ")
    assert takes in message


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMECE_RETRIES", "many")
    monkeypatch.setenv("IMECE_LOG_LEVEL", "loud")
    message = message_of()
    assert "IMECE_RETRIES" in message
    assert "IMECE_LOG_LEVEL" in message


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"processor": "a:b", "command": "c"}, "IMECE_PROCESSOR and IMECE_COMMAND exclude"),
        ({"redis_sentinels": "a:1"}, "IMECE_REDIS_SENTINEL_MASTER"),
        ({"redis_sentinel_master": "a"}, "IMECE_REDIS_SENTINELS"),
        ({"lease": "3", "heartbeat": "2"}, "IMECE_LEASE must be at least three times"),
    ],
)
def test_settings_that_do_not_go_together_are_named(given: dict[str, str], says: str) -> None:
    assert says in message_of(**given)


@pytest.mark.parametrize(
    "command",
    ["grep '>' {input}", 'awk "$1 > 5" {input}', r"grep \> {input}", "convert {input} -resize 50%"],
)
def test_what_is_quoted_is_an_argument(command: str) -> None:
    assert load(command=command).command == command


def test_variables_that_are_no_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMECE_REDIS_ULR", "redis://elsewhere")
    monkeypatch.setenv("IMECE_QUEUE", "a-setting")
    monkeypatch.setenv("IMECE_SECRETS_DIR", "secrets")
    monkeypatch.setenv("IMECE_REDIS_SERVICE_HOST", "10.0.0.1")  # of a Service in Kubernetes
    monkeypatch.setenv("IMECE_REDIS_PORT_6379_TCP_ADDR", "10.0.0.1")
    Path(".env").write_text("IMECE_NOTHING_LIKE_IT=1\nOTHER=2\n")
    secret("imece_retrys", "7")
    assert settings.unknown() == [
        "IMECE_NOTHING_LIKE_IT is not a setting of imece: docs/reference/settings.md has all",
        "IMECE_REDIS_ULR is not a setting of imece: do you mean IMECE_REDIS_URL?",
        "imece_retrys is not a setting of imece: do you mean IMECE_RETRIES?",
    ]


SOUND_URLS = [
    f"redis://:{PASSWORD}@localhost:6379/0",
    f"redis://user:{PASSWORD}@localhost",
    f"rediss://user:{PASSWORD}@[::1]:6379/15?ssl_cert_reqs=none",
    f"unix://:{PASSWORD}@/tmp/redis.sock?db=3",
]


@pytest.mark.parametrize("url", SOUND_URLS)
def test_a_password_is_in_no_picture_of_the_settings(url: str) -> None:
    found = load(redis_url=url, redis_password=PASSWORD)
    for picture in (repr(found), str(found), f"{found}", str(found.model_dump())):
        assert PASSWORD not in picture
    assert PASSWORD not in found.model_dump_json()


BROKEN_URLS = [
    f"redis://:{PASSWORD}/x@localhost:6379/0",
    f"redis://:{PASSWORD}#x@localhost:6379/0",
    f"redis://:x#{PASSWORD}@localhost:6379/0",
    f"redis://:x?{PASSWORD}@localhost:6379/0",
    f"redis://:1?{PASSWORD}@localhost:6379/0",
    f"redis://:1/{PASSWORD}@localhost:6379/0",
    f"redis://:1?{PASSWORD}=1@localhost:6379/0",
    f"redis://localhost:{PASSWORD}/0",
    f"redis://user:{PASSWORD}@localhost:70000",
    f"redis://user:{PASSWORD}@[::1",
    f"redis://localhost/0?password={PASSWORD}",
    f"redis://localhost/{PASSWORD}",
    f"http://:{PASSWORD}@localhost",
]


@pytest.mark.parametrize("url", BROKEN_URLS)
def test_a_broken_url_is_refused_without_a_word_of_its_password(url: str) -> None:
    """Nor of what may be a part of one, when a character in it was not escaped."""
    with pytest.raises(SettingsError, match="IMECE_REDIS_URL") as error:
        load(redis_url=url)
    assert PASSWORD not in str(error.value)
    assert error.value.__suppress_context__


def test_a_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMECE_RETRIES", PASSWORD)
    assert PASSWORD not in message_of()


def test_an_env_file_that_is_not_text_is_named() -> None:
    Path(".env").write_bytes(b"IMECE_QUEUE=\xff")
    assert message_of().startswith(".env or a file in ")


def test_a_secret_that_is_not_text_is_named() -> None:
    Path("secrets/IMECE_REDIS_PASSWORD").write_bytes(b"\xff")
    assert "UTF-8" in message_of()


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().queue = "another"  # type: ignore[misc]


def test_settings_survive_a_trip_to_another_process() -> None:
    found = load(redis_password=PASSWORD)
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301 - our own


def test_the_reference_in_docs_is_true() -> None:
    """To fix: python -m imece.settings > docs/reference/settings.md"""
    assert (ROOT / "docs" / "reference" / "settings.md").read_text("utf-8") == settings.reference()


def test_the_reference_says_what_every_setting_means() -> None:
    rows = settings.reference().splitlines()
    for name in Settings.model_fields:
        [row] = [row for row in rows if row.startswith(f"| `IMECE_{name.upper()}` |")]
        meaning = row.split("|")[3].strip()
        assert len(meaning) > 20
        assert meaning.endswith(".")


def test_the_reference_is_the_same_wherever_it_is_made() -> None:
    environment = {**os.environ, "XDG_STATE_HOME": "/elsewhere", "IMECE_QUEUE": "another"}
    made = subprocess.check_output(
        [sys.executable, "-m", "imece.settings"], env=environment, cwd=ROOT, text=True
    )
    assert made == settings.reference()
