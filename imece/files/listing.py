"""Which files there are: from the input directory, or from a list of names."""

import heapq
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pathspec

from imece import names
from imece.errors import ListingError

Accept = Callable[[bytes], bool]

_READ_SIZE = 2**20

LONGEST_NAME = 255
"""Bytes; NAME_MAX in linux/limits.h."""

SHOWN_LINKS = 5
"""How many of the refused links are named."""


@dataclass
class Listing:
    """Names relative to the input directory, in no order, and what was left out and why.

    Attributes:
        links: the names of the first links that were refused.
        beyond: how many files are over the limit that was given.
    """

    files: list[bytes] = field(default_factory=list)
    hidden: int = 0
    reserved: int = 0
    filtered: int = 0
    links_refused: int = 0
    links: list[bytes] = field(default_factory=list)
    special: int = 0
    beyond: int = 0

    def limit(self, files: int) -> None:
        """Keeps the first files by name."""
        self.beyond = max(0, len(self.files) - files)
        self.files = heapq.nsmallest(files, self.files)

    def nothing(self, source: Path) -> str:
        """A sentence that there are no files in `source`, and what was left out."""
        return "; ".join([f"there are no files to process in {source}", *self.omissions()])

    def omissions(self) -> list[str]:
        """What a person should know was left out."""
        links = [names.shown(name) for name in self.links]
        links += ["…"] if self.links_refused > len(links) else []
        refused = "link refused (it leaves the directory, or leads to one)"
        if self.links_refused > 1:
            refused = "links refused (they leave the directory, or lead to one)"
        notes = (
            (self.links_refused, f"{refused}: {', '.join(links)}"),
            (self.hidden, "hidden left out (--hidden takes them)"),
            (self.reserved, "left out with names of imece's own: .imece, .imece-…"),
            (self.filtered, "left out by --include and --exclude"),
            (self.special, "left out that are neither file, directory nor link"),
            (self.beyond, "left out by --limit"),
        )
        return [f"{count:,} {note}" for count, note in notes if count]


def check_directories(source: Path, target: Path | None) -> None:
    """Raises ListingError unless source can be read, and neither directory is in the other."""
    try:
        if not source.exists():
            raise ListingError(f"the input directory {source} does not exist")
        if not source.is_dir():
            raise ListingError(f"the input {source} is not a directory")
    except OSError as error:
        raise ListingError(f"the input directory {source}: {error.strerror}") from None
    if not os.access(source, os.R_OK | os.X_OK):
        raise ListingError(f"the input directory {source} cannot be read: check its permissions")
    if target is None:
        return
    try:
        there = next(path for path in (target, *target.parents) if _is_there(path))
        if not there.is_dir():
            raise ListingError(f"the output {there} is not a directory")
        inner, outer = target.resolve(), source.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        reason = error.strerror if isinstance(error, OSError) else "its links lead in a circle"
        raise ListingError(f"the output directory {target}: {reason}") from None
    if inner == outer:
        raise ListingError(
            "the output directory is the input directory: take another for the outputs"
        )
    if inner.is_relative_to(outer):
        raise ListingError(
            f"the output directory {target} lies inside the input directory {source}: "
            "outputs would become inputs. Take one outside it"
        )
    if outer.is_relative_to(inner):
        raise ListingError(
            f"the input directory {source} lies inside the output directory {target}: "
            "outputs could overwrite inputs. Take another for the outputs"
        )


def _is_there(path: Path) -> bool:
    """Whether there is anything by this name; a link to nothing counts, too."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def filters(include: Iterable[str], exclude: Iterable[str]) -> tuple[Accept | None, Accept | None]:
    """Two tests for names, from patterns as in .gitignore: `*.csv` at any depth, `/a/**/*.csv` from
    the top. The first accepts a file. The second refuses a file, or a whole directory (its name
    ends in a slash). None where there is nothing to test."""

    def spec(patterns: Iterable[str]) -> Accept | None:
        if not (patterns := list(patterns)):
            return None
        try:
            compiled = pathspec.GitIgnoreSpec.from_lines(patterns)
        except ValueError:
            raise ListingError(
                f"a pattern of --include or --exclude cannot be read: {', '.join(patterns)}",
                "write it as in .gitignore",
            ) from None
        return lambda name: compiled.match_file(os.fsdecode(name))

    return spec(include), spec(exclude)


def walk(
    root: Path, include: Iterable[str] = (), exclude: Iterable[str] = (), hidden: bool = False
) -> Listing:
    """All regular files below root, and links to such inside it. Links to directories are not
    followed.

    Raises:
        ListingError: a directory cannot be read. Nothing is left out without a message.
    """
    listing = Listing()
    accepted, refused = filters(include, exclude)
    real_root = os.fsencode(root.resolve())
    directories = [b""]
    while directories:
        prefix = directories.pop()
        try:
            with os.scandir(real_root + b"/" + prefix) as entries:
                found = _sort_out(entries, prefix, real_root, hidden, listing, directories)
        except OSError as error:
            raise ListingError(
                f"the directory {names.shown(real_root + b'/' + prefix)} cannot be read: "
                f"{error.strerror}. Fix its permissions, or leave it out with --exclude"
            ) from None
        if accepted or refused:
            kept = [
                name
                for name in found
                if (accepted is None or accepted(name)) and not (refused and refused(name))
            ]
            listing.filtered += len(found) - len(kept)
            found = kept
        listing.files += found
        if refused:
            directories = [name for name in directories if not refused(name)]
    return listing


def _sort_out(
    entries: Iterator[os.DirEntry[bytes]],
    prefix: bytes,
    root: bytes,
    hidden: bool,
    listing: Listing,
    directories: list[bytes],
) -> list[bytes]:
    """The files among a directory's entries; its directories are added to `directories`."""
    files = []
    for entry in entries:
        name = entry.name
        # Few names come before "/" in order: a quick way past most that do not begin with a dot.
        if name < b"/" and name[0] == 46 and names.is_ours(name):
            listing.reserved += 1
        elif name < b"/" and name[0] == 46 and not hidden:
            listing.hidden += 1
        elif not entry.is_symlink() and entry.is_file():  # quicker than with a keyword
            files.append(prefix + name if prefix else name)
        elif entry.is_dir(follow_symlinks=False):
            directories.append(prefix + name + b"/")
        elif not entry.is_symlink():
            listing.special += 1
        elif _stays_inside(entry.path, root):
            files.append(prefix + name)
        else:
            listing.links_refused += 1
            if len(listing.links) < SHOWN_LINKS:
                listing.links.append(prefix + name)
    return files


def _stays_inside(link: bytes, root: bytes) -> bool:
    """Whether a link leads to a regular file below root."""
    target = os.path.realpath(link)
    try:
        return target.startswith(root.rstrip(b"/") + b"/") and stat.S_ISREG(os.stat(target).st_mode)
    except OSError:
        return False


def read_names(stream: BinaryIO, root: Path, separator: bytes) -> Listing:
    """Names from a list: relative to root, or absolute below it; `./` before a name is dropped.

    Raises:
        ListingError: a name would leave the directory, is there twice, or is another's directory;
            the lines end as on Windows; or the names are those of the working directory.
    """
    listing = Listing()
    prefixes = [os.fsencode(path).rstrip(b"/") + b"/" for path in (root.absolute(), root.resolve())]
    for name in _split(stream, separator):
        relative = _relative(name, prefixes)
        if flaw := names.flaw(relative):
            raise ListingError(f"the name '{names.shown(name)}' in the list {flaw}")
        listing.files.append(relative)
    if separator == b"\n" and listing.files and all(name[-1:] == b"\r" for name in listing.files):
        raise ListingError(
            "every line of the list ends in a carriage return, as on Windows: leave those out "
            "(tr -d '\\r'), or separate the names by NUL (--null)"
        )
    if listing.files and _is_seen_from_here(first := listing.files[0], root):
        raise ListingError(
            f"the name '{names.shown(first)}' in the list is relative to the working directory: "
            f"names are relative to {root}, or absolute"
        )
    if len(set(listing.files)) < len(listing.files):
        twice = Counter(listing.files).most_common(1)[0][0]
        raise ListingError(f"the name '{names.shown(twice)}' is in the list twice")
    directories = _directories(listing.files)
    if not directories.isdisjoint(listing.files):
        both = next(name for name in listing.files if name in directories)
        below = next(name for name in listing.files if name.startswith(both + b"/"))
        raise ListingError(
            f"the list names '{names.shown(both)}' as a file, and as the directory of "
            f"'{names.shown(below)}': leave one of them out"
        )
    return listing


def _relative(name: bytes, prefixes: list[bytes]) -> bytes:
    for prefix in prefixes:
        if name.startswith(prefix):
            return name[len(prefix) :]
    while name.startswith(b"./"):
        name = name[2:]
    return name


def _is_seen_from_here(name: bytes, root: Path) -> bool:
    """Whether a name is right for the working directory, and wrong for root."""
    below = os.fsencode(root.resolve()) + b"/"
    if os.path.lexists(below + name) or not os.path.lexists(name):
        return False
    return os.path.realpath(name).startswith(below)


def _split(stream: BinaryIO, separator: bytes) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(_READ_SIZE):
        *whole, rest = (rest + block).split(separator)
        yield from filter(None, whole)
    if rest:
        yield rest


def check_outputs(files: Sequence[bytes], suffix: bytes | None) -> None:
    """Raises ListingError if two inputs would write the same output, if an output would be the
    directory of another, or if an output's name would be too long.

    Only a new suffix can do that. It compares hashes first, and names only of those that clash:
    that takes half the memory of a set of all names.
    """
    if suffix is None:
        return
    seen: set[int] = set()
    clashing: set[int] = set()
    for name in files:
        output = names.with_suffix(name, suffix)
        if len(output) > LONGEST_NAME and len(output.rpartition(b"/")[2]) > LONGEST_NAME:
            raise ListingError(
                f"the output of '{names.shown(name)}' would have a name of more than "
                f"{LONGEST_NAME} bytes: take a shorter --suffix, or leave it out with --exclude"
            )
        digest = hash(output)
        if digest in seen:
            clashing.add(digest)
        seen.add(digest)
    directories = {path for path in _directories(files) if hash(path) in seen}
    first: dict[bytes, bytes] = {}
    for name in files if clashing or directories else ():
        output = names.with_suffix(name, suffix)
        if output in directories:
            below = next(other for other in files if other.startswith(output + b"/"))
            raise ListingError(
                f"the output of '{names.shown(name)}' would be '{names.shown(output)}', and the "
                f"output of '{names.shown(below)}' would lie in a directory of that name: take "
                "another --suffix, or leave one of them out with --exclude"
            )
        if hash(output) not in clashing:
            continue
        if output in first:
            raise ListingError(
                f"the inputs '{names.shown(first[output])}' and '{names.shown(name)}' would both "
                f"write '{names.shown(output)}': leave --suffix out, or one of them with --exclude"
            )
        first[output] = name


def _directories(files: Iterable[bytes]) -> set[bytes]:
    """Every directory that holds one of the files, at any depth."""
    found = {name.rpartition(b"/")[0] for name in files}
    above = {path.rpartition(b"/")[0] for path in found} - found
    while above:
        found |= above
        above = {path.rpartition(b"/")[0] for path in above} - found
    return found - {b""}
