"""Each file is in the bucket its hash says, and in exactly one bucket job."""

import random

import mmh3
import pytest

from imece.errors import ListingError
from imece.files import listing
from imece.run import manifest
from imece_producer import grouping

UNSOUND = bytes.maketrans(b"\0/", b"__")


def some_names(count: int) -> list[bytes]:
    chance = random.Random(7)
    parts = (chance.randbytes(chance.randint(1, 40)) for _ in range(count))
    names = {part.translate(UNSOUND) for part in parts} - {b".", b".."}
    return sorted(names, key=lambda name: chance.random())


@pytest.mark.parametrize("buckets", [1, 2, 7, 256, 65536])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_files_bucket_is_its_hash_modulo_the_buckets(buckets: int, seed: int) -> None:
    files = some_names(3000)
    found: list[bytes] = []
    for bucket in grouping.group(files, buckets, seed):
        names = manifest.decode(bucket.manifest)
        assert names == sorted(names)
        assert len(names) == bucket.files > 0
        assert {mmh3.hash(name, seed, signed=False) % buckets for name in names} == {bucket.number}
        found += names
    assert sorted(found) == sorted(files)


def test_the_hash_is_the_one_others_can_compute() -> None:
    """MurmurHash3_x86_32 of `hello` with seed 1 is 0xbb4abcad, by its reference implementation."""
    (bucket,) = grouping.group([b"hello"], 1000, 1)
    assert bucket.number == 0xBB4ABCAD % 1000
    assert manifest.decode(bucket.manifest) == [b"hello"]


@pytest.mark.parametrize("files", [1, 2, 9, 10, 11, 99, 1000, 1251])
@pytest.mark.parametrize("cap", [1, 2, 10, 1000, 10**6])
def test_slices_cover_each_file_exactly_once(files: int, cap: int) -> None:
    slices = list(grouping.slices(files, cap))
    covered = [index for start, stop in slices for index in range(start, stop)]
    assert covered == list(range(files))
    sizes = [stop - start for start, stop in slices]
    assert max(sizes) <= cap
    assert max(sizes) - min(sizes) <= 1


def test_an_empty_bucket_has_no_slice() -> None:
    assert list(grouping.slices(0, 10)) == []


@pytest.mark.parametrize(
    ("files", "buckets", "files_per_job"),
    [
        (1, 1, 1),
        (100, 100, 1),
        (256, 256, 1),
        (257, 256, 2),
        (100_000, 256, 489),
        (1_000_000, 1000, 1250),
        (100_000_000, 65536, 1908),
    ],
)
def test_the_shape_is_chosen_from_the_count(files: int, buckets: int, files_per_job: int) -> None:
    assert grouping.shape(files, None, None) == grouping.Shape(buckets, files_per_job)


def test_what_is_asked_for_is_taken() -> None:
    assert grouping.shape(1000, 3, 17) == grouping.Shape(3, 17)
    assert grouping.shape(1000, 10, None) == grouping.Shape(10, 125)
    assert grouping.shape(1000, None, 2) == grouping.Shape(256, 2)


def test_two_inputs_that_would_write_one_output_are_refused() -> None:
    with pytest.raises(ListingError, match=r"'a\.csv' and 'a\.tsv' would both write 'a\.json'"):
        listing.check_outputs([b"b.csv", b"a.csv", b"d/a.csv", b"a.tsv"], b".json")


def test_inputs_alike_in_different_directories_are_fine() -> None:
    listing.check_outputs([b"a.csv", b"d/a.csv", b"e/a.tsv", b"a.tar.gz"], b".json")


def test_without_a_new_suffix_no_outputs_clash() -> None:
    listing.check_outputs([b"a.csv", b"a.tsv"], None)


@pytest.mark.parametrize("below", [b"d/report.d/x.txt", b"d/report.d/e/f/x.txt"])
def test_an_output_that_is_another_outputs_directory_is_refused(below: bytes) -> None:
    said = (
        rf"the output of 'd/report\.txt' would be 'd/report\.d', and the output of "
        rf"'{below.decode()}' "
        r"would lie in a directory of that name: take another --suffix, or leave one of them out"
    )
    for files in ([b"d/report.txt", below, b"a"], [below, b"a", b"d/report.txt"]):
        with pytest.raises(ListingError, match=said):
            listing.check_outputs(files, b".d")


def test_outputs_beside_a_directory_of_a_similar_name_are_fine() -> None:
    files = [b"report.txt", b"report.d/x.txt", b"d/report", b"report.dx/y", b"e/report.d/f/z"]
    listing.check_outputs(files, b".e")
    listing.check_outputs(files, None)
