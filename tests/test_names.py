"""Names of files are bytes and cannot leave their directory; names of runs are plain."""

import re

import pytest
from hypothesis import given, strategies

from imece import names


@pytest.mark.parametrize(
    "name",
    [
        b"a",
        b"a/b/c.txt",
        b"-rf",
        b"with space",
        b"two\nlines",
        b"'quotes\"",
        b"\xff\xfe",
        b"...",
        b"..a/b..",
        b".hidden",
        b"x" * 255,
    ],
)
def test_any_name_a_file_system_allows_is_sound(name: bytes) -> None:
    assert names.flaw(name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"", "is empty"),
        (b"/etc/passwd", "is an absolute path"),
        (b"..", "'..' part"),
        (b"../a", "'..' part"),
        (b"a/../../b", "'..' part"),
        (b"a/..", "'..' part"),
        (b"./a", "'.'"),
        (b"a/./b", "'.'"),
        (b"a//b", "empty"),
        (b"a/", "empty"),
        (b"a\0b", "NUL"),
    ],
)
def test_a_name_that_could_leave_its_directory_is_refused(name: bytes, why: str) -> None:
    assert why in str(names.flaw(name))


@pytest.mark.parametrize(
    ("name", "output"),
    [
        (b"a.csv", b"a.json"),
        (b"a", b"a.json"),
        (b"a.tar.gz", b"a.tar.json"),
        (b"dir.d/a", b"dir.d/a.json"),
        (b"dir/.hidden", b"dir/.hidden.json"),
        (b"\xff.csv", b"\xff.json"),
    ],
)
def test_a_suffix_replaces_the_last_ending_of_the_last_part(name: bytes, output: bytes) -> None:
    assert names.with_suffix(name, b".json") == output
    assert names.with_suffix(name, None) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain.txt", "plain.txt"),
        ("köy.txt".encode(), "köy.txt"),
        (b"two\nlines", "two\\nlines"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"not utf-8 \xff", "not utf-8 \\xff"),
        ("right to left \u202e".encode(), "right to left \\u202e"),
    ],
)
def test_a_shown_name_cannot_play_tricks_on_a_terminal(name: bytes, shown: str) -> None:
    assert names.shown(name) == shown


@pytest.mark.parametrize(
    ("text", "run_id"),
    [
        ("nightly", "nightly"),
        ("Nightly_2026-11-23", "Nightly_2026-11-23"),
        ("x" * 64, "x" * 64),
        ("_", "_"),
        (
            "scheduled__2026-11-23T00:00:00+00:00",
            "scheduled__2026-11-23T00-00-00-00-00-4a56ce8e4c0d",
        ),
        ("a b/c", "a-b-c-539138d51839"),
        ("  padded  ", "padded-3d4a55719d2e"),
    ],
)
def test_a_run_id_is_letters_digits_dash_and_underscore(text: str, run_id: str) -> None:
    assert names.slug(text) == run_id


@pytest.mark.parametrize("text", ["", "ü", "///", "x" * 65, "x" * 10_000, "-", "\udcff"])
def test_a_run_id_is_never_empty_nor_long(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", names.slug(text))


def test_texts_that_are_cut_do_not_become_one_run() -> None:
    long = "x" * 100
    assert names.slug(long + "a") != names.slug(long + "b")
    assert names.slug("ü") != names.slug("ö")


def test_two_texts_do_not_become_one_run() -> None:
    """Seen: the second was taken for the first, and was green without having worked."""
    alike = ["load.2026.11", "load-2026-11", "load 2026 11", "load-2026-11-", "-load-2026-11"]
    alike += ["gün", "gân", "g-n", "", "-", "--", "a" * 64, "a" * 65, "a" * 64 + "-", "A", "a"]
    assert len({names.slug(text) for text in alike}) == len(alike)


@pytest.mark.slow
@given(strategies.text(max_size=80), strategies.text(max_size=80))
def test_any_two_texts_are_two_runs(one: str, other: str) -> None:
    assert (names.slug(one) == names.slug(other)) == (one == other)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", names.slug(one))


def test_a_slug_stays_as_it_is_when_slugged_again() -> None:
    for text in ("a b", "x" * 100, "ü", "-a-"):
        assert names.slug(names.slug(text)) == names.slug(text)
