"""Two runs do not make one file of one directory."""

import json
import os
from typing import Any

from redis import Redis

from imece import names
from imece.connection import raw, text
from imece.errors import RunError
from imece.files import occupancy
from imece.run import keys
from imece.run.parameters import Parameters
from imece.run.records import RecordError
from imece.run.store import ON, SOUND_ID, STEP, Run
from imece.settings import Settings


class Overlap:
    """Compares the outputs of a round with those of the other runs of the queue, name by name.

    A run is refused if one of its outputs is another run's, which has another input or suffix.
    Several inputs go into one directory as long as their names differ. If another run has the same
    input and suffix, it is refused while that is on: each file would be processed twice.

    It knows what Redis knows: the runs that have not expired, with the files of their last round.
    It compares directories by their paths, so that a link to one is another one.

    Attributes:
        seen: the place in the list of runs up to which they were compared.
    """

    def __init__(
        self, run: Run, parameters: Parameters, files: list[bytes], settings: Settings
    ) -> None:
        self.seen = float("-inf") if parameters.output is not None else float("inf")
        self._run = run
        self._redis: Redis = run.redis
        self._parameters = parameters
        self._files = files
        self._server = settings.redis_url.get_secret_value()
        self._outputs: set[int] = set()

    def compare(self) -> None:
        """Looks at the runs that have come since the last time.

        Raises:
            RunError: another run makes, or has made, one of the outputs; or a local run has the
                output directory for itself.
        """
        if self._parameters.output is not None:
            occupancy.check(os.fsencode(self._parameters.output), self._server)
        listed, since = keys.runs(self._run.queue), f"({self.seen!r}"
        found: list[Any] = self._redis.zrangebyscore(listed, since, "+inf", withscores=True)
        others = [raw(run_id) for run_id, _ in found if SOUND_ID.fullmatch(raw(run_id))]
        for start in range(0, len(others), STEP):
            some = others[start : start + STEP]
            self._compare_with([Run(self._redis, self._run.queue, text(one)) for one in some])
        if found:
            self.seen = found[-1][1]

    def _compare_with(self, others: list[Run]) -> None:
        with self._redis.pipeline(transaction=False) as pipeline:
            for other in others:
                pipeline.hmget(other.key, "parameters", "parts", "state")
            answers = pipeline.execute(raise_on_error=False)
        output = json.dumps(self._parameters.output).encode()  # as `Parameters.encode` has it
        for other, answer in zip(others, answers, strict=True):
            if other.id == self._run.id or isinstance(answer, Exception) or None in answer:
                continue
            parameters, parts, state = answer
            if output in raw(parameters):
                self._compare_files(other, raw(parameters), parts, text(state))

    def _compare_files(self, other: Run, encoded: bytes, parts: bytes, state: str) -> None:
        try:
            theirs, mine = Parameters.decode(encoded), self._parameters
            same_input = (theirs.input, theirs.suffix) == (mine.input, mine.suffix)
            is_over = state not in ON and (state != "held" or same_input)
            if theirs.output != mine.output or (is_over and (same_input or mine.overwrite)):
                return
            for part in filter(None, text(parts).split(",")):
                for _, files in other.buckets(part):
                    self._refuse_common(other.id, theirs, files, is_over, same_input)
        except RecordError:
            return  # a run whose records are damaged makes nothing until it is enqueued again

    def _refuse_common(
        self,
        run_id: str,
        theirs: Parameters,
        files: list[bytes],
        is_over: bool,
        same_input: bool,
    ) -> None:
        mine, suffix = self._parameters.ending, theirs.ending
        if not self._outputs:
            self._outputs = {hash(names.with_suffix(name, mine)) for name in self._files}
        for name in files:
            output = names.with_suffix(name, suffix)
            if hash(output) not in self._outputs:
                continue
            for own in self._files:
                if names.with_suffix(own, mine) != output:
                    continue
                if same_input and own == name:
                    raise RunError(
                        f"run {run_id} is on, and makes '{names.shown(output)}' in "
                        f"{names.printable(str(theirs.output))} of the same input",
                        f"wait until it has ended, or `imece cancel {run_id}`; a call with its run "
                        "id attaches to it",
                    )
                raise RunError(
                    f"the output of '{names.shown(own)}' would be '{names.shown(output)}' in "
                    f"{names.printable(str(theirs.output))}, where run {run_id} "
                    f"{'has made' if is_over else 'makes'} that file of "
                    f"'{names.shown(name)}' in {names.printable(theirs.input)}",
                    "take another output directory"
                    + (", or overwrite what is there: --overwrite" if is_over else ""),
                )
