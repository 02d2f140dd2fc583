"""Several files at a time, for a class with `process_batch`.

A batch that fails is halved until the bad file stands alone. There it is tried as any other file
(imece_worker/runner.py), and only there a try is charged to it. After a batch that has ended its
process, its files are tried one by one, as are those of an isolated job and retries.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from imece.files.rows import Outcome
from imece_worker import causes, stops
from imece_worker.capture import flush
from imece_worker.directories import PathError
from imece_worker.inputs import CHANGED, Inputs
from imece_worker.limits import used
from imece_worker.outputs import Outputs
from imece_worker.runner import STALLED, STOPPED, WORN, Runner, line_of


@dataclass
class Member:
    """One file of a batch: its places, and what its input was when it was looked at."""

    index: int
    inputs: Inputs
    outputs: Outputs | None
    found: os.stat_result
    target: bytes | None


class BatchRunner(Runner):
    """Goes through the files batch by batch."""

    _slots: list[tuple[Inputs, Outputs | None]]

    def _try_all(self, to_do: list[int]) -> bytes | None:
        self._slots = []
        try:
            for part in self._parts(to_do):
                if (word := self._try_part(part)) is not None:
                    return word
            return None
        finally:
            for inputs, outputs in self._slots:
                inputs.close()
                if outputs is not None:
                    outputs.close()

    def _parts(self, to_do: list[int]) -> Iterator[list[int]]:
        size = 1 if self._a.cursor.isolated else self._context.processor.batch
        first, stop = self._a.alone
        part: list[int] = []
        for index in to_do:
            is_alone = first <= index < stop
            if part and (is_alone or len(part) == size):
                yield part
                part = []
            part.append(index)
            if is_alone:
                yield part
                part = []
        if part:
            yield part

    def _try_part(self, part: list[int]) -> bytes | None:
        """How the job is left, if it is left after these files."""
        if len(part) == 1:
            return self._try_next(part[0])
        if self._control.stopping:
            return STOPPED
        if self._context.limits.are_reached():
            return WORN
        self._control.begin(part[0], self._rows, part[-1])
        members, alone = self._members(part)
        signals = stops.heard()
        try:
            self._context.limits.tried += len(members)
            if members:
                pairs = [(one.inputs.path, one.target) for one in members]
                self._context.processor.process_batch(pairs)
            self._leave(part[0])
        except BaseException as error:
            self._leave(part[0])
            word = self._why_left(error, signals)
            self._discard(members)
            self._control.end()
            if word is not None:
                return word
            middle = len(part) // 2
            return self._try_part(part[:middle]) or self._try_part(part[middle:])
        return self._commit(members) or super()._try_all(alone)

    def _members(self, part: list[int]) -> tuple[list[Member], list[int]]:
        """The files of a batch; and those that cannot be part of it, to be tried alone."""
        members: list[Member] = []
        alone: list[int] = []
        for number, index in enumerate(part):
            if number == len(self._slots):
                self._slots.append(self._a.paths.slot(number + 1))
            inputs, outputs = self._slots[number]
            name, target = self._a.files[index - self._a.first], None
            try:
                found = inputs.look(name)
                if outputs is not None:
                    target = outputs.prepare(index, name)
            except Exception:  # it comes again when the file is tried alone
                alone.append(index)
                continue
            members.append(Member(index, inputs, outputs, found, target))
        return members, alone

    def _leave(self, first: int) -> None:
        """Right after the processor has come back."""
        self._end_copy()
        self._respect_time_limit(first)
        flush()
        if not self._inputs.tree.is_held():
            os._exit(causes.CODE_OF_CLOSED_OURS)

    def _why_left(self, error: BaseException, signals: int) -> bytes | None:
        """How the job is left after an error that is no file's."""
        if self._was_stopped(error, signals):
            return STOPPED
        fault = self._fault(error)
        return None if fault is None else line_of(STALLED, fault)

    def _discard(self, members: list[Member]) -> None:
        for one in members:
            if one.outputs is not None:
                one.outputs.discard()
        self._a.paths.forget()
        self._context.capture.clear()

    def _commit(self, members: list[Member]) -> bytes | None:
        """Puts the outputs in their places. What cannot be put there is tried alone at once: its
        row has to follow the one of this try."""
        count = max(1, len(members))
        spent = self._control.microseconds() // count
        before, self._used = self._used, used()
        cpu = int((self._used[0] - before[0]) * 1e6) // count
        for one in members:
            self._control.begin(one.index, self._rows)
            try:
                self._put(one, spent, cpu)
            except Exception:
                if one.outputs is not None:
                    one.outputs.discard()
                if self._control.stopping:
                    self._control.void = one.index
                    return STOPPED
                counts = self._try(one.index)
                if self._stalled is not None:
                    return line_of(STALLED, self._stalled)
                if not counts:
                    return STOPPED
            self._control.end()
        self._context.capture.clear()
        return None

    def _put(self, one: Member, spent: int, cpu: int) -> None:
        """
        Args:
            spent, cpu: its share of the batch's time and of its time on processors, microseconds.
        """
        hashes = self._hashes(one.inputs.path, one.target)
        if one.inputs.changed():
            raise PathError(CHANGED)

        def note(made: os.stat_result | None) -> None:
            row = self._row(one.index, Outcome.DONE, one.found, made)
            self._append(row._replace(microseconds=spent, cpu=cpu, detail=hashes))

        if one.outputs is not None:
            one.outputs.commit(note)
        else:
            note(None)
