"""A cursor survives its trip through Redis."""

import pytest

from imece.run.job import Cursor, PendingRetry


@pytest.mark.parametrize(
    "cursor",
    [
        Cursor(0, 10),
        Cursor(10, 10),
        Cursor(3, 1000, {0: PendingRetry(1, 1700000000.25), 2: PendingRetry(7, 0.0, 12345)}),
        Cursor(3, 4, isolated=True, marked=3),
    ],
)
def test_a_cursor_comes_back_as_it_was(cursor: Cursor) -> None:
    assert Cursor.decode(cursor.encode()) == cursor
    assert Cursor.decode(cursor.encode().encode()) == cursor


def test_a_fresh_cursor_is_short() -> None:
    """One stands in Redis for every bucket job."""
    assert Cursor(0, 1250).encode() == "[0,1250,{},0,-1]"


@pytest.mark.parametrize("text", ["", "{}", "[1,2]", "[0,1,{},0,-1,9]", '[0,1,{"x":[1,1]},0,-1]'])
def test_what_is_no_cursor_is_refused_as_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        Cursor.decode(text)
