"""What executions leave in the output directory whose runner or worker died: proofs of what
they have put in its place, older outputs that were backed up, and their staging directories.

Proven is only that an output is the one that was about to be renamed, not what is in it.
"""

import os
from collections.abc import Iterator, Sequence

from imece.files import beneath, staging
from imece_worker.directories import PathError
from imece_worker.outputs import BACKUP, Outputs


def proven(outputs: Outputs, execution: str) -> Iterator[tuple[int, int, int]]:
    """The proofs an execution has left: index, device, inode."""
    try:
        number = staging.open_private(outputs.tree.root, staging.name_of(execution), make=False)
    except OSError:
        return
    try:
        found = staging.proofs(number)
    finally:
        os.close(number)
    for index, renamed in found.items():
        for device, inode in renamed:
            yield index, device, inode


def restore(outputs: Outputs, execution: str, files: Sequence[bytes]) -> None:
    """Puts older outputs back that a runner was about to replace when it was killed, and removes
    what else it has left of the files it had in hand."""
    place = staging.name_of(execution)
    try:
        number = staging.open_private(outputs.tree.root, place, make=False)
    except OSError:
        return
    try:
        for index in _indexes(number):
            if index < len(files):
                output = outputs.name(files[index])
                temporary = outputs.temporary(index, output)
                _put_back(outputs, number, temporary, output)
                for path in staging.copy_targets(number):
                    copy_target = place + staging.CARRIED
                    _put_back_copied(outputs, path, copy_target, temporary, output)
                beneath.remove(temporary, number)
    finally:
        os.close(number)


def _indexes(directory: int) -> set[int]:
    """Of the files whose temporary outputs lie in a staging directory."""
    try:
        heads = [entry.partition("_")[0] for entry in os.listdir(directory)]
    except OSError:
        return set()
    return {int(head) for head in heads if head.isascii() and head.isdigit()}


def _put_back(outputs: Outputs, number: int, temporary: bytes, output: bytes) -> None:
    if not beneath.is_there(temporary + BACKUP, number):
        return
    directory, _, last = output.rpartition(b"/")
    try:
        there = outputs.tree.directory(directory)
        if not beneath.is_there(last, there):
            os.rename(temporary + BACKUP, last, src_dir_fd=number, dst_dir_fd=there)
    except (OSError, PathError):
        pass
    beneath.remove(temporary + BACKUP, number)


def _put_back_copied(
    outputs: Outputs, path: bytes, copy_target: bytes, temporary: bytes, output: bytes
) -> None:
    try:
        directory = beneath.open_directory(outputs.tree.root, path)
    except OSError:
        return
    try:
        number = staging.open_private(directory, copy_target, make=False)
        try:
            _put_back(outputs, number, temporary, output)
        finally:
            os.close(number)
        beneath.remove(copy_target, directory)
    except OSError:
        pass
    finally:
        os.close(directory)
