"""Every file is listed exactly once, by whatever name it has, or it is said why not."""

import io
import os
from pathlib import Path

import pytest

from imece.errors import ListingError
from imece.files import listing
from imece.files.listing import Listing

ODD_NAMES = [
    b"two\nlines",
    b"'single' \"double\"",
    b" spaces around ",
    b"-rf",
    b"--help",
    b"x" * 255,
    b"not utf-8 \xff\xfe",
    b"back\\slash",
    b"star*",
    b"#comment",
    b"!negated",
    b"tab\t",
]


def make(root: Path, *names: str | bytes) -> None:
    """Makes empty files, and the directories they are in."""
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def listed(found: Listing) -> list[str]:
    return sorted(os.fsdecode(name) for name in found.files)


def test_all_files_at_any_depth_are_listed(tmp_path: Path) -> None:
    deep = "/".join("abcdefghij") + "/deep"
    make(tmp_path, "top", "a/one", "a/b/two", deep)
    (tmp_path / "empty").mkdir()
    assert listed(listing.walk(tmp_path)) == sorted(["top", "a/one", "a/b/two", deep])


def test_odd_names_are_listed_as_they_are(tmp_path: Path) -> None:
    make(tmp_path, *ODD_NAMES, *(b"-d\n\xff/" + name for name in ODD_NAMES))
    expected = sorted([*ODD_NAMES, *(b"-d\n\xff/" + name for name in ODD_NAMES)])
    assert sorted(listing.walk(tmp_path).files) == expected


def test_an_input_directory_with_an_odd_name_is_listed(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/-in \n\xff"))
    make(root, "a/file")
    assert listed(listing.walk(root)) == ["a/file"]


def test_hidden_files_and_directories_are_left_out_and_counted(tmp_path: Path) -> None:
    make(tmp_path, "shown", ".hidden", ".git/config", ".git/HEAD", "a/.b")
    found = listing.walk(tmp_path)
    assert listed(found) == ["shown"]
    assert found.hidden == 3  # .git is one: it is not looked into
    assert found.omissions() == ["3 hidden left out (--hidden takes them)"]


def test_hidden_files_are_taken_when_asked_for(tmp_path: Path) -> None:
    make(tmp_path, "shown", ".hidden", ".git/config", "a/.b")
    found = listing.walk(tmp_path, hidden=True)
    assert listed(found) == [".git/config", ".hidden", "a/.b", "shown"]
    assert found.omissions() == []


def test_temporary_outputs_of_imece_are_never_inputs(tmp_path: Path) -> None:
    make(tmp_path, "shown", ".imece-0123456789ab-7.txt", "a/.imece-0123456789ab-8")
    make(tmp_path, "a/.imece/ledger/x.rows", ".imece.txt")
    for hidden in (True, False):
        found = listing.walk(tmp_path, hidden=hidden)
        assert listed(found) == ([".imece.txt"] if hidden else []) + ["shown"]
        assert found.reserved == 3
        assert "3 left out with names of imece's own: .imece, .imece-…" in found.omissions()


TREE = ["a.csv", "a.txt", "d/b.csv", "d/b.txt", "d/e/c.csv", "skip/x.csv", "skip/y/z.csv"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.csv"], [], ["a.csv", "d/b.csv", "d/e/c.csv", "skip/x.csv", "skip/y/z.csv"]),
        (["/*.csv"], [], ["a.csv"]),
        (["/d/*"], [], ["d/b.csv", "d/b.txt", "d/e/c.csv"]),
        (["d/**/*.csv"], [], ["d/b.csv", "d/e/c.csv"]),
        (["/d/**"], [], ["d/b.csv", "d/b.txt", "d/e/c.csv"]),
        (["d/"], [], ["d/b.csv", "d/b.txt", "d/e/c.csv"]),
        (["?.txt", "x.*"], [], ["a.txt", "d/b.txt", "skip/x.csv"]),
        (["[ab].csv"], [], ["a.csv", "d/b.csv"]),
        (["*.csv", "!b.csv"], [], ["a.csv", "d/e/c.csv", "skip/x.csv", "skip/y/z.csv"]),
        ([], ["*.csv"], ["a.txt", "d/b.txt"]),
        ([], ["skip"], ["a.csv", "a.txt", "d/b.csv", "d/b.txt", "d/e/c.csv"]),
        ([], ["skip/", "e/"], ["a.csv", "a.txt", "d/b.csv", "d/b.txt"]),
        ([], ["/e/"], TREE),
        ([], ["/a.*", "/skip"], ["d/b.csv", "d/b.txt", "d/e/c.csv"]),
        (["*.csv"], ["skip/"], ["a.csv", "d/b.csv", "d/e/c.csv"]),
        (["*.none"], [], []),
    ],
)
def test_globs_mean_what_they_mean_in_a_gitignore(
    tmp_path: Path, include: list[str], exclude: list[str], expected: list[str]
) -> None:
    make(tmp_path, *TREE)
    assert listed(listing.walk(tmp_path, include, exclude)) == sorted(expected)


def test_files_that_globs_leave_out_are_counted(tmp_path: Path) -> None:
    make(tmp_path, *TREE)
    found = listing.walk(tmp_path, ["*.csv"], ["d/b.*"])
    assert found.filtered == len(TREE) - len(found.files) == 3
    assert found.omissions() == ["3 left out by --include and --exclude"]


def test_globs_take_names_that_are_not_utf_8(tmp_path: Path) -> None:
    make(tmp_path, b"\xff.csv", b"\xff.txt", b"two\nlines.csv")
    found = listing.walk(tmp_path, ["*.csv"])
    assert sorted(found.files) == [b"two\nlines.csv", b"\xff.csv"]


def test_a_glob_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a")
    with pytest.raises(ListingError, match="pattern"):
        listing.walk(tmp_path, ["!"])


def test_a_directory_that_is_left_out_is_not_looked_into(tmp_path: Path) -> None:
    make(tmp_path, "a", "skip/b")
    (tmp_path / "skip" / "loop").symlink_to("loop")
    found = listing.walk(tmp_path, exclude=["skip"])
    assert listed(found) == ["a"]
    assert found.links_refused == 0


def test_links_to_files_inside_are_taken(tmp_path: Path) -> None:
    make(tmp_path, "d/file")
    (tmp_path / "link").symlink_to("d/file")
    (tmp_path / "d" / "up").symlink_to("../d/file")
    (tmp_path / "absolute").symlink_to(tmp_path / "d" / "file")
    (tmp_path / "twice").symlink_to("link")
    found = listing.walk(tmp_path)
    assert listed(found) == ["absolute", "d/file", "d/up", "link", "twice"]
    assert found.links_refused == 0


def test_links_that_leave_or_lead_nowhere_are_refused_and_counted(tmp_path: Path) -> None:
    root, outside = tmp_path / "in", tmp_path / "in-outside"
    make(root, "file", "d/file")
    make(outside, "secret")
    (root / "outside").symlink_to("../in-outside/secret")  # its path begins like the root's
    (root / "absolute").symlink_to(outside / "secret")
    (root / "broken").symlink_to("nothing")
    (root / "loop").symlink_to("loop")
    (root / "device").symlink_to("/dev/zero")
    (root / "through").symlink_to("d/../../in-outside/secret")
    found = listing.walk(root)
    assert listed(found) == ["d/file", "file"]
    assert found.links_refused == 6
    [said] = found.omissions()
    assert said.startswith("6 links refused (they leave the directory, or lead to one): ")
    shown = said.partition("): ")[2].split(", ")
    assert len(shown) == 6
    assert shown[5] == "…"
    assert set(shown[:5]) < {"outside", "absolute", "broken", "loop", "device", "through"}


def test_a_link_to_a_directory_is_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "d/file")
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "d" / "round").symlink_to("..")
    found = listing.walk(tmp_path)
    assert listed(found) == ["d/file"]
    assert found.links_refused == 2


def test_an_input_directory_that_is_a_link_is_listed(tmp_path: Path) -> None:
    make(tmp_path / "real", "a/file", "b")
    (tmp_path / "real" / "link").symlink_to("a/file")
    (tmp_path / "link").symlink_to("real")
    found = listing.walk(tmp_path / "link")
    assert listed(found) == ["a/file", "b", "link"]


def test_what_is_no_file_is_left_out_and_counted(tmp_path: Path) -> None:
    make(tmp_path, "file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link-to-fifo").symlink_to("fifo")
    found = listing.walk(tmp_path)
    assert listed(found) == ["file"]
    assert (found.special, found.links_refused) == (1, 1)
    assert found.omissions()[1] == "1 left out that are neither file, directory nor link"


def names_in(text: bytes, root: Path, separator: bytes = b"\n") -> list[bytes]:
    return listing.read_names(io.BytesIO(text), root, separator).files


def test_a_list_has_one_name_a_line(tmp_path: Path) -> None:
    assert names_in(b"a\n b \nd/c", tmp_path) == [b"a", b" b ", b"d/c"]


def test_a_list_may_end_its_names_in_nul(tmp_path: Path) -> None:
    text = b"\0".join(ODD_NAMES) + b"\0"
    assert names_in(text, tmp_path, b"\0") == ODD_NAMES


def test_names_in_a_list_may_be_written_as_find_writes_them(tmp_path: Path) -> None:
    absolute = os.fsencode(tmp_path) + b"/d/b"
    assert names_in(b"./a\n" + absolute + b"\n././c\n", tmp_path) == [b"a", b"d/b", b"c"]


def test_absolute_names_may_go_through_a_link_to_the_input(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    text = os.fsencode(tmp_path) + b"/link/a\n" + os.fsencode(tmp_path) + b"/real/b\n"
    assert names_in(text, tmp_path / "link") == [b"a", b"b"]


def test_names_as_the_working_directory_sees_them_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`find in` in place of `cd in && find .`: not one of its files would be found."""
    make(tmp_path, "in/a", "in/in/b", "c")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ListingError, match=r"the name 'in/a' in the list is relative to the work"):
        names_in(b"in/a\n", Path("in"))
    assert names_in(b"in/b\nin/a\n", Path("in")) == [b"in/b", b"in/a"]
    assert names_in(b"c\n", Path("in")) == [b"c"]


@pytest.mark.parametrize("below", [b"a/b", b"a/c/d"])
def test_a_name_in_a_list_that_is_anothers_directory_is_refused(
    tmp_path: Path, below: bytes
) -> None:
    for text in (b"a\nx\n" + below, below + b"\nx\na"):
        with pytest.raises(ListingError, match="names 'a' as a file, and as the directory of"):
            names_in(text, tmp_path)
    assert names_in(b"a\nab/c\n", tmp_path) == [b"a", b"ab/c"]


def test_empty_lines_are_no_names(tmp_path: Path) -> None:
    assert names_in(b"\n\na\n\n", tmp_path) == [b"a"]


def test_a_list_longer_than_what_is_read_at_a_time_stays_whole(tmp_path: Path) -> None:
    expected = [b"d/%07d-%s" % (number, b"x" * (number % 200)) for number in range(30_000)]
    assert names_in(b"\n".join(expected), tmp_path) == expected


@pytest.mark.parametrize(
    ("name", "flaw"),
    [
        (b"../secret", "'..'"),
        (b"a/../../secret", "'..'"),
        (b"/etc/passwd", "absolute"),
        (b"a//b", "empty"),
        (b"d/", "empty"),
        (b"a\0b", "NUL"),
        (b"a/.imece-0123456789ab/renames", "imece's own"),
    ],
)
def test_a_name_that_leaves_the_input_is_refused_by_name(
    tmp_path: Path, name: bytes, flaw: str
) -> None:
    with pytest.raises(ListingError, match="in the list") as error:
        names_in(b"fine\n" + name + b"\n", tmp_path)
    assert flaw in str(error.value)


def test_an_absolute_name_that_begins_like_the_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ListingError, match="absolute"):
        names_in(os.fsencode(tmp_path) + b"-other/secret\n", tmp_path)


def test_an_absolute_name_does_not_climb_out_of_the_input(tmp_path: Path) -> None:
    with pytest.raises(ListingError, match=r"'\.\.'"):
        names_in(os.fsencode(tmp_path) + b"/../secret\n", tmp_path)


# The two directories


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the input directory `in`."""
    make(tmp_path, "in/d/file", "a-file")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nothing")
    (tmp_path / "to-in").symlink_to("in")
    return tmp_path


@pytest.mark.parametrize("name", ["loop", "x" * 300, "a-file/below", "broken", "a-file"])
def test_a_path_that_can_be_no_directory_is_refused_by_name(folder: Path, name: str) -> None:
    path = folder / name
    there = str(path).removesuffix("/below")
    with pytest.raises(ListingError, match=there):
        listing.check_directories(path, folder / "out")
    with pytest.raises(ListingError, match=there):
        listing.check_directories(folder / "in", path)


@pytest.mark.parametrize("target", ["in", "in/d/..", "d/../in", "to-in"])
def test_the_input_as_output_is_refused(folder: Path, target: str) -> None:
    with pytest.raises(ListingError, match="the output directory is the input directory"):
        listing.check_directories(folder / "in", folder / target)


@pytest.mark.parametrize("target", ["in/out", "to-in/a/b", "out/../in/d"])
def test_an_output_inside_the_input_is_refused(folder: Path, target: str) -> None:
    with pytest.raises(ListingError, match="lies inside the input directory"):
        listing.check_directories(folder / "in", folder / target)


@pytest.mark.parametrize(("source", "target"), [("in/d", "in"), ("to-in/d", "in"), ("in", ".")])
def test_an_input_inside_the_output_is_refused(folder: Path, source: str, target: str) -> None:
    with pytest.raises(ListingError, match="lies inside the output directory"):
        listing.check_directories(folder / source, folder / target)


@pytest.mark.parametrize("target", ["out", "in-out", "i", "a/b/c", "..out"])
def test_any_other_output_is_fine_and_is_not_made_yet(folder: Path, target: str) -> None:
    listing.check_directories(folder / "in", folder / target)
    assert not (folder / target).exists()
