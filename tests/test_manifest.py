"""A manifest gives back the names that went in, and nothing that imece did not put there."""

import zlib

import pytest

from imece.run import manifest


def test_names_come_back_as_they_went_in() -> None:
    files = sorted([b"a/b.txt", b"two\nlines", b"\xff\xfe", b"-rf", b"x" * 255, b"'\" "])
    assert manifest.decode(manifest.encode(files)) == files


def test_alike_names_take_few_bytes() -> None:
    files = [b"part-%06d.csv" % number for number in range(1000)]
    assert len(manifest.encode(files)) < 6 * len(files)


@pytest.mark.parametrize("name", [b"../outside", b"/etc/passwd", b"", b"a/../b"])
def test_a_manifest_with_a_name_that_leaves_its_directory_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match="in the manifest"):
        manifest.decode(manifest.encode([b"fine", name]))


def test_garbage_is_refused() -> None:
    with pytest.raises(ValueError, match="not a manifest"):
        manifest.decode(b"garbage")


def test_a_manifest_that_was_cut_off_is_refused() -> None:
    blob = manifest.encode([b"part-%06d.csv" % number for number in range(1000)])
    with pytest.raises(ValueError, match="cut off"):
        manifest.decode(blob[:-10])


def test_what_follows_a_manifest_is_refused() -> None:
    with pytest.raises(ValueError, match="something follows"):
        manifest.decode(manifest.encode([b"a"]) + b"more")


def test_a_name_that_is_there_twice_is_refused() -> None:
    """Its file would be processed twice, and counted twice."""
    with pytest.raises(ValueError, match="twice"):
        manifest.decode(manifest.encode([b"a", b"b", b"a"]))


def test_a_bomb_is_refused_before_it_fills_the_memory() -> None:
    bomb = zlib.compressobj(9)
    blob = b"".join(bomb.compress(bytes(2**20)) for _ in range(65)) + bomb.flush()
    with pytest.raises(ValueError, match="too large"):
        manifest.decode(blob)
