"""The promise: whatever is in Redis, reading it gives a sound value or a reason why not, in a time
and a memory that are bounded.

A fuzzer over every record: some examples here, 10,000 for each with `make test-slow`.
"""

import json
import re
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from imece.errors import ListingError
from imece.run import manifest, records
from imece.run.failure import Failure
from imece.run.job import Cursor, MalformedJobError, PendingRetry, Reference
from imece.run.parameters import Parameters
from imece_producer import grouping

PARAMETERS = Parameters(
    input="/data/in",
    output="/data/out",
    suffix=".json",
    overwrite=False,
    source="directory",
    include=("*.csv",),
    exclude=(),
    hidden=False,
    buckets=7,
    files_per_job=None,
    retries=2,
    retry_pause=1.0,
    timeout=3600.0,
)
REFERENCE = Reference("nightly", "0123abcd", 3, 250)

# What JSON can hold, and what it should not: huge numbers, NaN, lone surrogates, NUL.
NUMBERS = some.one_of(
    some.integers(),
    some.sampled_from([2**31, 2**32, 2**53, 2**63, 2**64, -1, 10**40]),
    some.floats(allow_nan=True, allow_infinity=True),
)
TEXTS = some.one_of(
    some.text(max_size=20),
    some.sampled_from(
        ["", "\0", "/a\0b", "a", "../..", "\udcff", "\ud800", "/\ud800", "x" * 5000, "\x1b[2J"]
    ),
)
VALUES = some.recursive(
    some.one_of(some.none(), some.booleans(), NUMBERS, TEXTS),
    lambda inner: some.one_of(
        some.lists(inner, max_size=4), some.dictionaries(TEXTS, inner, max_size=4)
    ),
    max_leaves=12,
)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _changed(sound: Any) -> some.SearchStrategy[bytes]:
    """A sound record with one or two of its parts replaced, left out or added."""
    keys = list(sound) if isinstance(sound, dict) else list(range(len(sound)))

    def change(steps: list[tuple[Any, Any, bool]]) -> bytes:
        made = sound.copy()
        for key, value, remove in steps:
            if isinstance(made, list):
                made = [value if place == key else part for place, part in enumerate(made)]
                made = made[:-1] if remove else made
            elif remove:
                made.pop(key, None)
            else:
                made[key] = value
        return _json(made)

    steps = some.tuples(some.sampled_from(keys), VALUES, some.booleans())
    return some.lists(steps, min_size=1, max_size=2).map(change)


def _broken(sound: bytes) -> some.SearchStrategy[bytes]:
    """A sound record with some bytes cut out and others put in their place."""
    place = some.integers(0, len(sound))
    return some.tuples(place, place, some.binary(max_size=8)).map(
        lambda cut: sound[: min(cut[0], cut[1])] + cut[2] + sound[max(cut[0], cut[1]) :]
    )


def _nested() -> some.SearchStrategy[bytes]:
    return some.tuples(some.sampled_from([b"[", b'{"a":', b'[{"":']), some.integers(1, 20_000)).map(
        lambda deep: deep[0] * deep[1]
    )


def _json_of(sound: Any) -> some.SearchStrategy[bytes]:
    return some.one_of(
        _changed(sound), _broken(_json(sound)), VALUES.map(_json), _nested(), some.binary()
    )


@dataclass(frozen=True)
class Kind:
    """One kind of record: what may stand in Redis, and a check of how it is read.

    `read` returns a value and what `encode` would write of it again.
    """

    given: some.SearchStrategy[Any]
    read: Callable[[Any], Any]
    again: Callable[[Any], Any]


def _manifests() -> some.SearchStrategy[bytes]:
    sound = manifest.encode([b"a.csv", b"b/c.csv"])
    names = some.lists(
        some.one_of(some.binary(max_size=6), some.sampled_from([b"a", b"..", b"a/b", b"/", b""])),
        max_size=5,
    )
    return some.one_of(
        _broken(sound), names.map(lambda found: zlib.compress(b"\0".join(found))), some.binary()
    )


CURSOR = [3, 10, {"1": [1, 5.5, 0], "2": [2, 7, 2**32 - 1]}, 0, -1]
DIGITS = some.one_of(
    some.integers().map(lambda number: b"%d" % number),
    some.floats().map(lambda number: repr(number).encode()),
    some.sampled_from([b"", b"1_0", b" 1", b"+1", b"0x1", b"9" * 5000, b"\xb2", b"nan", b"1e999"]),
    some.binary(max_size=12),
)


def _job_id(found: bytes) -> Reference:
    try:
        return Reference.parse(found)
    except MalformedJobError as error:
        raise ValueError(error) from None


def _with(read: Callable[..., Any]) -> Callable[[bytes], Any]:
    return lambda found: read({"name": found}, "name")


def _number(value: float | None) -> bytes:
    return repr(value).encode()


KINDS = {
    "parameters": Kind(
        _json_of(json.loads(PARAMETERS.encode())), Parameters.decode, Parameters.encode
    ),
    "cursor": Kind(_json_of(CURSOR), Cursor.decode, Cursor.encode),
    "failure": Kind(
        _json_of(json.loads(Failure("it broke", 3, 1.5, "worker-1").encode())),
        Failure.decode,
        Failure.encode,
    ),
    "job": Kind(
        some.one_of(_broken(REFERENCE.job_id.encode()), some.binary(max_size=90)),
        _job_id,
        lambda job: job.job_id.encode(),
    ),
    "manifest": Kind(_manifests(), manifest.decode, manifest.encode),
    "counter": Kind(DIGITS, _with(records.whole), _number),
    "moment": Kind(DIGITS, _with(records.moment), _number),
    "text": Kind(some.binary(), _with(records.text), str.encode),
    "histogram": Kind(
        some.dictionaries(DIGITS, DIGITS, max_size=4),
        lambda found: records.histogram("durations", found),
        lambda counts: {_number(slot): _number(count) for slot, count in counts.items()},
    ),
    "ranking": Kind(
        some.lists(some.tuples(some.binary(max_size=5), some.floats()), max_size=4),
        lambda found: records.ranking("slowest", found),
        lambda ranked: ranked,
    ),
}


def fuzz(kind: Kind, examples: int) -> None:
    """Each example is refused with a reason, or is a value that can be written and read again."""

    @settings(
        max_examples=examples,
        deadline=2000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.given)
    def check(found: Any) -> None:
        try:
            value = kind.read(found)
        except ValueError as error:
            assert str(error)
            assert len(str(error)) < 2000
            return
        assert kind.read(kind.again(value)) == value

    check()


@pytest.mark.parametrize("name", KINDS)
def test_a_record_is_a_sound_value_or_is_refused(name: str) -> None:
    fuzz(KINDS[name], 200)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", KINDS)
def test_ten_thousand_records_are_sound_or_refused(name: str) -> None:
    fuzz(KINDS[name], 10_000)


# The sound ones are taken, or the above would be true of a reader that refuses everything


def test_what_imece_writes_is_read_again() -> None:
    paths = {"input": "/in \udcff\n", "output": None, "suffix": None}
    for parameters in (PARAMETERS, Parameters(**{**vars(PARAMETERS), **paths})):
        assert Parameters.decode(parameters.encode().encode()) == parameters
    failure = Failure("Traceback …\nValueError: \0\x1b", 3, 1795531242.5, "host-1")
    assert Failure.decode(failure.encode().encode()) == failure
    assert Failure.decode(failure.encode().encode(), b"\xff").output == "\N{REPLACEMENT CHARACTER}"
    assert records.moment({"at": b"1795531242.123456"}, "at") == 1795531242.123456
    assert records.moment({}, "at") is None
    assert records.whole({}, "done") == 0
    assert records.histogram("timeline", {b"10": b"2", b"5": b"1"}) == {5: 1, 10: 2}


@pytest.mark.slow
def test_a_full_bucket_job_all_of_whose_files_failed_is_read_again() -> None:
    retries = {index: PendingRetry(101, 1795531242.123456, 2**32 - 1) for index in range(100_000)}
    cursor = Cursor(100_000, 100_000, retries)
    assert Cursor.decode(cursor.encode()) == cursor


# Each way a run has been spoilt, and the words for it


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"output": ""}, "output is empty"),
        ({"input": ""}, "input is empty"),
        ({"input": "relative"}, "input is not an absolute path"),
        ({"output": "out"}, "output is not an absolute path"),
        ({"input": "/a\0b"}, "input contains a NUL"),
        ({"output": "/\ud800"}, "output cannot be written as bytes"),
        ({"suffix": "/../x"}, "suffix is empty or holds a /"),
        ({"suffix": ".\0"}, "suffix contains a NUL"),
        ({"suffix": ""}, "suffix is empty"),
        ({"include": ["\0"]}, "include or exclude"),
        ({"include": "*.csv"}, "include is no list"),
        ({"include": [7]}, "include is not what it should be"),
        ({"source": "elsewhere"}, "source"),
        ({"buckets": 0}, "buckets 0"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, "seed"),
        ({"retries": 2**40}, "retries"),
        ({"retries": True}, "retries"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 1e300}, "timeout"),
        ({"timeout": float("nan")}, "not finite"),
        ({"timeout": float("inf")}, "not finite"),
        ({"retry_pause": -1}, "retry_pause"),
        ({"retries": 10**400}, "too large"),
        ({"more": 1}, "more"),
    ],
)
def test_parameters_that_no_worker_could_use_are_refused(
    changes: dict[str, Any], says: str
) -> None:
    spoilt = json.loads(PARAMETERS.encode()) | changes
    with pytest.raises(ValueError, match=f"the run's parameter.*{re.escape(says)}"):
        Parameters.decode(json.dumps(spoilt).encode())


@pytest.mark.parametrize(
    "text",
    [
        "[0,1,{},0,1e999]",
        "[0,1,{},0,NaN]",
        "[0,1,{},2,-1]",
        '[0,1,{"0":[-1,0,0]},0,-1]',
        '[0,1,{"0":[1,-1,0]},0,-1]',
        '[0,1,{"0":[1,Infinity,0]},0,-1]',
        '[0,1,{"-0":[1,0,0]},0,-1]',
        '[0,1,{"0":[1.5,0,0]},0,-1]',
        '[0,1,{"0":[1,0,0.5]},0,-1]',
        '[0,1,{"0":[1,0]},0,-1]',
        "[true,1,{},0,-1]",
        "[0,9999999999999999999999,{},0,-1]",
        "[" * 100_000,
        "[0,1," + "[" * 50_000,
    ],
)
def test_cursors_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        Cursor.decode(text)


def test_a_failure_that_cannot_be_read_is_a_failure_all_the_same() -> None:
    for spoilt in (b"", b"[" * 100_000, b"{}", b'{"reason":1,"tries":1,"at":1,"worker":"w"}'):
        assert "cannot be read" in Failure.read(spoilt).last_line


# Memory


def peak(work: Callable[[], Any]) -> float:
    """The most memory it takes, in MiB."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            work()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def test_a_small_manifest_does_not_unpack_to_gigabytes() -> None:
    """One of 255 kB took 5 GB: 256 MiB, every second byte a NUL."""
    packer = zlib.compressobj(1)
    blob = b"".join(packer.compress(b"a\0" * 2**20) for _ in range(128)) + packer.flush()
    assert peak(lambda: manifest.decode(blob)) < 200


@pytest.mark.slow
def test_the_largest_manifest_takes_half_a_gigabyte_at_the_most() -> None:
    names = [b"%07d/%023d" % (number, number) for number in range(manifest.MOST_NAMES - 1)]
    blob = manifest.encode([*names, b"a", b"a"][-manifest.MOST_NAMES :])
    del names
    assert peak(lambda: manifest.decode(blob)) < 600


@pytest.mark.parametrize("text", ["[],", "{},", "0,", '"",', "[[],[]],"])
def test_json_of_any_kind_takes_a_bounded_memory(text: str) -> None:
    long = "[" + text * (8 * 2**20 // len(text)) + "0]"
    many = "[" + text * (100_000 // len(text)) + "0]"
    assert peak(lambda: Cursor.decode(many)) < 10
    assert peak(lambda: Cursor.decode(long)) < 10
    assert peak(lambda: Parameters.decode(many)) < 10
    assert peak(lambda: Parameters.decode(long)) < 10
    assert peak(lambda: Failure.decode(many.encode())) < 10


# What would be refused is not written


def test_a_bucket_with_too_many_files_is_refused_with_the_mend() -> None:
    with pytest.raises(ListingError, match=r"2,097,153 files .* take more --buckets"):
        manifest.encode([b""] * (manifest.MOST_NAMES + 1))
    with pytest.raises(ListingError, match="take more --buckets"):
        grouping.group([b"x" * 2**20 + b"%d" % number for number in range(65)], 1, 1)


def test_a_bucket_job_holds_no_more_files_than_a_cursor_may_owe() -> None:
    assert grouping.shape(10_000_000, 1, None).files_per_job == 100_000
