"""What executions leave in the output directory whose work-horse or worker died: proofs of what
they have put in its place, older outputs that were set aside, and their workplaces.

Proven is only that an output is the one that was about to be renamed, not what is in it.
"""

import os
from collections.abc import Iterator, Sequence

from imece import beneath, workplace
from worker.directories import PlaceError
from worker.outputs import ASIDE, Outputs


def proven(outputs: Outputs, execution: str) -> Iterator[tuple[int, int, int]]:
    """The proofs an execution has left: index, device, inode."""
    try:
        number = workplace.open_private(outputs.tree.root, workplace.name_of(execution), make=False)
    except OSError:
        return
    try:
        found = workplace.proofs(number)
    finally:
        os.close(number)
    for index, renamed in found.items():
        for device, inode in renamed:
            yield index, device, inode


def restore(outputs: Outputs, execution: str, files: Sequence[bytes]) -> None:
    """Puts older outputs back that a horse was about to replace when it was killed, and removes
    what else it has left of the files it had in hand."""
    place = workplace.name_of(execution)
    try:
        number = workplace.open_private(outputs.tree.root, place, make=False)
    except OSError:
        return
    try:
        for index in _indexes(number):
            if index < len(files):
                output = outputs.name(files[index])
                temporary = outputs.temporary(index, output)
                _put_back(outputs, number, temporary, output)
                for path in workplace.landings(number):
                    landing = place + workplace.CARRIED
                    _put_back_landed(outputs, path, landing, temporary, output)
                beneath.remove(temporary, number)
    finally:
        os.close(number)


def _indexes(directory: int) -> set[int]:
    """Of the files whose temporary outputs lie in a workplace."""
    try:
        heads = [entry.partition("_")[0] for entry in os.listdir(directory)]
    except OSError:
        return set()
    return {int(head) for head in heads if head.isascii() and head.isdigit()}


def _put_back(outputs: Outputs, number: int, temporary: bytes, output: bytes) -> None:
    if not beneath.is_there(temporary + ASIDE, number):
        return
    directory, _, last = output.rpartition(b"/")
    try:
        there = outputs.tree.directory(directory)
        if not beneath.is_there(last, there):
            os.rename(temporary + ASIDE, last, src_dir_fd=number, dst_dir_fd=there)
    except (OSError, PlaceError):
        pass
    beneath.remove(temporary + ASIDE, number)


def _put_back_landed(
    outputs: Outputs, path: bytes, landing: bytes, temporary: bytes, output: bytes
) -> None:
    try:
        directory = beneath.open_directory(outputs.tree.root, path)
    except OSError:
        return
    try:
        number = workplace.open_private(directory, landing, make=False)
        try:
            _put_back(outputs, number, temporary, output)
        finally:
            os.close(number)
        beneath.remove(landing, directory)
    except OSError:
        pass
    finally:
        os.close(directory)
