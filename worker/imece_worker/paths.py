"""The places of one bucket job's files: where they are read and where their outputs go; nothing
outside the run's two directories.

Both the worker and its runner have one, each with descriptors of its own. The runner uses
`inputs` and `outputs`; the worker what is here, before, beside and after it.
"""

import os
from collections.abc import Iterator, Sequence

from imece import names
from imece.files import staging
from imece.files.staging import StagingDirectory
from imece.run.parameters import Parameters
from imece.settings import Settings
from imece_worker import faults, private, proofs
from imece_worker.directories import PathError
from imece_worker.inputs import Inputs
from imece_worker.outputs import Outputs

_left: dict[bytes, set[str]] = {}
"""Staging directories that this worker could not remove, by output directory: it may be
read-only."""


class Paths:
    """The run's directories.

    Args:
        source_root, target_root: as this worker sees them; no target if the run wants no output.
        suffix, execution, overwrite: see `Outputs`.
        kind: what the staging directory is for, see `staging.sweep`.
    """

    def __init__(
        self,
        source_root: bytes,
        target_root: bytes | None,
        suffix: bytes | None,
        execution: str,
        overwrite: bool = False,
        kind: str = "",
    ) -> None:
        self.source_root = os.path.realpath(source_root)
        self.target_root = os.path.realpath(target_root) if target_root is not None else None
        self.suffix = suffix
        self.execution = execution
        self.overwrite = overwrite
        self.kind = kind
        self._link = private.InputLink(execution)
        self.inputs = Inputs(self.source_root, self._link)
        self.outputs: Outputs | None = None
        if self.target_root is not None:
            self.outputs = Outputs(self.target_root, suffix, execution, overwrite, self._link)

    @classmethod
    def of(
        cls, settings: Settings, parameters: Parameters, execution: str, kind: str = ""
    ) -> "Paths":
        """Those of a run, with its directories where this worker's settings say it sees them."""
        target = settings.output or parameters.output_path
        return cls(
            os.fsencode(settings.input or parameters.input_path),
            os.fsencode(target) if target is not None and parameters.output is not None else None,
            os.fsencode(parameters.suffix) if parameters.suffix is not None else None,
            execution,
            parameters.overwrite,
            kind,
        )

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

    def untouched(self) -> bool:
        """Whether there is no output yet, of any run. False, too, if that cannot be seen."""
        if self.target_root is None:
            return True
        try:
            with os.scandir(self.target_root) as entries:
                return all(entry.name.startswith(names.TEMPORARY_PREFIX) for entry in entries)
        except OSError:  # it may be written to, and not be listed
            return False

    def occupy(self) -> None:
        """Makes the staging directory and holds its lock.

        Raises:
            PathError: it cannot be made.
        """
        private.directory()  # made before there is a runner, for all of them
        if (outputs := self.outputs) is None:
            return
        for execution in _left.pop(outputs.tree.path, set()):
            self.clear(execution)
        try:
            outputs.staging_directory = StagingDirectory.make(outputs.tree.root, self.execution)
            outputs.staging_directory.hold(self.kind)
        except OSError as error:
            outputs.tree.forget()
            why = self.fault(error) or f"the staging directory cannot be made: {error.strerror}"
            raise PathError(why, error.errno) from None

    def show_life(self) -> None:
        if self.outputs is not None and self.outputs.staging_directory is not None:
            self.outputs.staging_directory.show_life()

    def input_size(self, name: bytes) -> int:
        """0 if it is not there: the processor may have consumed it."""
        return self.inputs.size(name)

    def clear(self, execution: str) -> bool:
        """Removes the staging directory of an execution with all that is in it and was carried from
        it. False if somebody writes to it at this moment, so that it is still there."""
        if execution == self.execution:
            private.clear(execution)
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

    def sweep(self, patience: float) -> int:
        """Removes staging directories that dead workers have left; see `staging.sweep`."""
        if self.target_root is None:
            return 0
        return staging.sweep(self.target_root, kind=self.kind or None, patience=patience)

    def leave(self) -> None:
        """The staging directory to whoever takes the job over, if there are proofs in it."""
        if next(self.proven(self.execution), None) is None:
            self.clear(self.execution)
            return
        private.clear(self.execution)
        self.close()

    def proven(self, execution: str) -> Iterator[tuple[int, int, int]]:
        """The proofs an execution has left: index, device, inode."""
        return proofs.proven(self.outputs, execution) if self.outputs is not None else iter(())

    def proof(self, name: bytes, device: int, inode: int) -> os.stat_result | None:
        """The output, if it is the one that was about to be renamed."""
        there = self.outputs.existing(name) if self.outputs is not None else None
        if there is None or self.outputs is None:
            return None
        return there if (self.outputs.device(there), there.st_ino) == (device, inode) else None

    def renew_proof(self, index: int, device: int, inode: int) -> None:
        """Takes a proof over from a staging directory that is about to be removed."""
        if self.outputs is not None and self.outputs.staging_directory is not None:
            try:
                self.outputs.staging_directory.prove(index, device, inode)
            except OSError:
                pass  # then it is done again, if this worker dies, too

    def restore(self, execution: str, files: Sequence[bytes]) -> None:
        """See `proofs.restore`."""
        if self.outputs is not None:
            proofs.restore(self.outputs, execution, files)

    def fault(self, error: BaseException | None) -> str | None:
        """What is wrong with the run's directories, so that a file failed for it; None: nothing.
        To be asked before what the file has written is removed: it may be what fills the disk."""
        if (outputs := self.outputs) is None:
            return faults.fault(error, self.inputs.tree, None, None)
        number = outputs.staging_directory.number if outputs.staging_directory is not None else None
        return faults.fault(error, self.inputs.tree, outputs.tree, number)

    def forget(self) -> None:
        """Looks at every directory afresh from here on: one may have been removed."""
        self.inputs.tree.forget()
        if self.outputs is not None:
            self.outputs.forget()

    def close(self) -> None:
        """Lets everything go. What is removed then is gone on NFS, too."""
        self.inputs.close()
        if self.outputs is not None:
            self.outputs.close()
        self._link.close()
