"""The places of one bucket job's files: where they are read and where their outputs go. Nothing is
outside the run's two directories.

Both the worker and its runner have one, each with its own descriptors. The runner uses `inputs` and
`outputs`. The worker uses what is here, before a runner, at the same time and after it.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imece import names
from imece.files import beneath, ledger, occupancy, rows, segment, staging
from imece.files.rows import Row
from imece.files.segment import Segment
from imece.files.staging import StagingDirectory
from imece.run.parameters import Parameters
from imece_worker import directory_faults, log, private_directory
from imece_worker.directories import PathError
from imece_worker.inputs import Inputs
from imece_worker.outputs import BACKUP, DRAFT, Outputs
from imece_worker.storage import Storage

if TYPE_CHECKING:
    from imece.settings import Settings

SWEEP_PATIENCE = 1.0
"""Seconds for a look at what dead workers have left. Longer would delay the lease's renewal."""

MOST_SWEPT = 1000
_swept: set[str] = set()
"""The runs whose output directories this worker has swept."""

_left: dict[bytes, set[str]] = {}
"""Staging directories that this worker could not remove, by output directory: it may be
read-only."""


class Paths:
    """The run's directories.

    Args:
        source_root, target_root: as this worker sees them; no target if the run wants no output.
        execution: names the staging directory, so that no other execution writes to the same.
        kind: what the staging directory is for, see `staging.sweep`.
        syncs: whether outputs are put on stable storage.
        server: the address of Redis; see `occupancy.share`.

    Attributes:
        storage: what puts them there, once they are occupied; None if nothing does.
    """

    def __init__(
        self,
        source_root: str | Path,
        target_root: str | Path | None,
        parameters: Parameters,
        execution: str,
        kind: str = "",
        syncs: bool = False,
        server: str = "",
    ) -> None:
        self.storage: Storage | None = None
        self._syncs, self._server = syncs, server
        self._share: int | None = None
        self.source_root = os.path.realpath(os.fsencode(source_root))
        self.target_root: bytes | None = None
        self.execution = execution
        self.kind = kind
        self.inputs = Inputs(self.source_root, execution)
        self.outputs: Outputs | None = None
        self._segment: Segment | None = None
        self._ending = parameters.ending
        self._overwrite = parameters.overwrite
        if target_root is not None:
            self.target_root = os.path.realpath(os.fsencode(target_root))
            self.outputs = Outputs(self.target_root, self._ending, execution, self._overwrite)

    def slot(self, number: int) -> tuple[Inputs, Outputs | None]:
        """Places for one more file at the same time.

        Args:
            number: from 1 on.
        """
        inputs = Inputs(self.source_root, self.execution, self.inputs.tree, number)
        outputs = None
        if self.outputs is not None and self.target_root is not None:
            outputs = Outputs(
                self.target_root, self._ending, self.execution, self._overwrite, self.outputs.tree
            )
        return inputs, outputs

    @classmethod
    def of(
        cls, settings: "Settings", parameters: Parameters, execution: str, kind: str = ""
    ) -> "Paths":
        """Those of a run, with its directories where this worker's settings say it sees them."""
        target = parameters.output and (settings.output or parameters.output)
        syncs = settings.sync == "checkpoint"
        source, server = settings.input or parameters.input, settings.redis_url.get_secret_value()
        return cls(source, target, parameters, execution, kind, syncs, server)

    def blocking_reason(self) -> str | None:
        """Why no file at all can be processed here, or None. Creates the output directory."""
        if not os.path.isdir(self.source_root):
            return f"the input directory {names.shown(self.source_root)} is not there"
        if not os.access(self.source_root, os.R_OK | os.X_OK):
            return f"the input directory {names.shown(self.source_root)} cannot be read"
        if self.target_root is None:
            return None
        try:
            os.makedirs(self.target_root, exist_ok=True)
        except OSError as error:
            return f"the output directory {names.shown(self.target_root)}: {error.strerror}"
        if not os.access(self.target_root, os.W_OK | os.X_OK):
            return f"the output directory {names.shown(self.target_root)} cannot be written to"
        return None

    def unseen_by_producer(self, when: float) -> str | None:
        """What is wrong if the producer did not see the output directory at that time, though it
        was there, by the ledger; else None."""
        if self.target_root is None:
            return None
        blocks, _ = staging.noted(self.target_root)
        if all(block.at >= when for block in blocks):
            return None
        return (
            f"the producer has not seen the output directory {names.shown(self.target_root)}, so "
            "it took no file for current, and there are outputs in it. Mount its volume where you "
            "enqueue, and enqueue again; `imece resume` processes all files"
        )

    def occupy(self, header: dict[str, Any], files: Sequence[bytes]) -> Segment | None:
        """Makes the staging directory, holds its lock, and begins its segment.

        Args:
            header: of the segment's block; see `Execution`.

        Returns:
            The segment; None if the run makes no outputs.

        Raises:
            PathError: it cannot be made.
        """
        private_directory.directory()  # made before a runner is told of it
        if (outputs := self.outputs) is None:
            return None
        try:
            self._share = occupancy.share(outputs.tree.path, self._server)
        except occupancy.InUseError as error:
            raise PathError(str(error)) from None
        if self._syncs:
            self.storage = Storage(outputs.tree.path)
        for execution in _left.pop(outputs.tree.path, set()):
            self.clear(execution)
        try:
            outputs.staging_directory = StagingDirectory.make(outputs.tree.root, self.execution)
            outputs.staging_directory.hold(self.kind)
            self._segment = Segment.begin(outputs.staging_directory.number, header, files)
            return self._segment
        except OSError as error:
            outputs.tree.forget()
            why = self.fault(error) or f"the staging directory cannot be made: {error.strerror}"
            raise PathError(why, error.errno) from None

    def ledger_flaw(self) -> str | None:
        """Why the ledger cannot be written, or None."""
        if self.outputs is None:
            return None
        try:
            ledger.check(self.outputs.tree.root)
        except OSError as error:
            return f"{names.shown(self.outputs.tree.path)}/.imece/ledger: {error.strerror}"
        return None

    def compact(self) -> None:
        """Puts the files of the ledger together. The run has ended: no file waits for it."""
        if self.target_root is None:
            return
        try:
            ledger.compact(self.target_root)
        except (OSError, rows.LedgerError) as error:
            log.event("ledger not put together", logging.WARNING, reason=str(error))

    def show_life(self) -> None:
        if self.outputs is not None and self.outputs.staging_directory is not None:
            self.outputs.staging_directory.show_life()

    def clear(self, execution: str) -> bool:
        """Removes the staging directory of an execution with all that is in it and was carried from
        it. False if it is still there, because somebody writes to it at this moment."""
        if execution == self.execution:
            self.note_copy_targets()
            private_directory.clear(execution)
            if self._segment is not None and self.outputs is not None:
                with suppress(OSError, PathError):  # `ledger_flaw` has told
                    self._segment.keep(self.outputs.tree.root)
                    if (staged := self.outputs.staging_directory) is not None:
                        os.unlink(ledger.SEGMENT, dir_fd=staged.number)
            self.close()
        if (outputs := self.outputs) is None:
            return True
        try:
            cleared = staging.clear(outputs.tree.root, staging.name_of(execution))
        except OSError:  # the output directory is gone
            cleared = True
        if execution == self.execution:
            outputs.tree.forget()
        if not cleared:
            _left.setdefault(outputs.tree.path, set()).add(execution)
        return cleared

    def sweep_once(self, run: str) -> None:
        """Once for each run: removes staging directories that dead workers have left."""
        if run in _swept:
            return
        if flaw := self.ledger_flaw():
            log.event("ledger cannot be written", logging.WARNING, run=run, reason=flaw)
        if len(_swept) >= MOST_SWEPT:
            _swept.clear()
        _swept.add(run)
        if self.target_root is not None:
            staging.sweep(self.target_root, kind=self.kind or None, patience=SWEEP_PATIENCE)

    def leave(self) -> None:
        """Leaves the staging directory to whoever takes the job over, if there are rows in it."""
        if not self.rows_of(self.execution):
            self.clear(self.execution)
            return
        private_directory.clear(self.execution)
        self.close()

    def rows_of(self, execution: str) -> list[Row]:
        """What an execution has written; nothing if it cannot be read."""
        number = self._open_staging_directory_of(execution)
        try:
            if number is not None:
                block = segment.left_in(number)
            elif self.outputs is not None:  # it could not tell Redis any more, and has cleared up
                block = ledger.of_execution(self.outputs.tree.root, execution)
            else:
                block = None
            return block.rows() if block is not None else []
        except (OSError, rows.LedgerError):
            return []
        finally:
            if number is not None:
                os.close(number)

    def has_output(self, name: bytes) -> bool:
        """Looked up anew. True, too, if the run makes no outputs."""
        if self.outputs is None:
            return True
        self.outputs.tree.forget()
        try:
            return self.outputs.existing(name) is not None
        finally:
            self.outputs.tree.forget()

    def remove_output(self, name: bytes) -> None:
        """If it is there, and can be removed."""
        assert self.outputs is not None  # noqa: S101 - only then is anything put on storage
        directory, _, last = self.outputs.name(name).rpartition(b"/")
        self.outputs.tree.forget()
        with suppress(OSError, PathError):
            beneath.remove(last, self.outputs.tree.directory(directory))
        self.outputs.tree.forget()

    def note_copy_targets(self) -> None:
        """Lets `storage` know of other file systems on which outputs are."""
        if self.storage is None or self.outputs is None:
            return
        if (staged := self.outputs.staging_directory) is not None:
            self.storage.add(staging.copy_targets(staged.number))

    def holds(self, name: bytes, row: Row) -> bool:
        """Whether the output of which a row tells is in its place. True, too, if the run makes no
        outputs."""
        if self.outputs is None:
            return True
        there = self.outputs.existing(name)
        made = row.output_size, row.output_mtime
        return there is not None and rows.size_and_time(there) == made

    def restore(self, execution: str, files: Sequence[bytes]) -> None:
        """Puts older outputs back that a runner was about to replace when it was killed, and
        removes what else it has left of its current file."""
        number = self._open_staging_directory_of(execution)
        if number is None or (outputs := self.outputs) is None:
            return
        try:
            _put_back(outputs, number, files)
            carried = staging.name_of(execution) + staging.CARRIED
            for path in staging.copy_targets(number):
                _put_back_carried(outputs, path, carried, files)
            for name in _names(number):
                if name.startswith(DRAFT):
                    beneath.remove(name, number)
        finally:
            os.close(number)

    def _open_staging_directory_of(self, execution: str) -> int | None:
        """A descriptor of it; None if it is not there."""
        if self.outputs is None:
            return None
        try:
            name = staging.name_of(execution)
            return staging.open_private(self.outputs.tree.root, name, make=False)
        except OSError:
            return None

    def fault(self, error: BaseException | None) -> str | None:
        """What is wrong with the run's directories, so that a file failed; or None. Asked before
        the file's temporary output is removed: that may be what fills the disk."""
        if (outputs := self.outputs) is None:
            return directory_faults.fault(error, self.inputs.tree, None, None)
        number = outputs.staging_directory.number if outputs.staging_directory is not None else None
        return directory_faults.fault(error, self.inputs.tree, outputs.tree, number)

    def forget(self) -> None:
        """Closes every directory, because one may have been removed. It is opened again when it is
        needed."""
        self.inputs.tree.forget()
        if self.outputs is not None:
            self.outputs.forget()

    def close(self) -> None:
        """Closes everything. What is removed then is gone on NFS, too."""
        if self._segment is not None:
            self._segment.close()
        if self._share is not None:
            os.close(self._share)
            self._share = None
        self.inputs.close()
        if self.outputs is not None:
            self.outputs.close()


def _names(directory: int) -> list[bytes]:
    """What lies in a directory."""
    try:
        return [os.fsencode(name) for name in os.listdir(directory)]
    except OSError:
        return []


def _put_back(outputs: Outputs, number: int, files: Sequence[bytes]) -> None:
    """Puts older outputs back that lie in this directory: at most one, of the current file."""
    for backup in _names(number):
        index, underscore, _ = backup.removesuffix(BACKUP).partition(b"_")
        if not (backup.endswith(BACKUP) and underscore and index.isdigit()):
            continue
        if int(index) < len(files):
            directory, _, last = outputs.name(files[int(index)]).rpartition(b"/")
            try:
                there = outputs.tree.directory(directory)
                if not beneath.is_there(last, there):
                    os.rename(backup, last, src_dir_fd=number, dst_dir_fd=there)
            except (OSError, PathError):
                pass
        beneath.remove(backup, number)


def _put_back_carried(
    outputs: Outputs, path: bytes, carried: bytes, files: Sequence[bytes]
) -> None:
    """As `_put_back`, from beside the output's place on another file system."""
    try:
        directory = beneath.open_directory(outputs.tree.root, path)
    except OSError:
        return
    try:
        number = staging.open_private(directory, carried, make=False)
        try:
            _put_back(outputs, number, files)
        finally:
            os.close(number)
        beneath.remove(carried, directory)
    except OSError:
        pass
    finally:
        os.close(directory)
