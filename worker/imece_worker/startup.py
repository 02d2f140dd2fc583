"""What every worker does first."""

import sys
from pathlib import Path

from imece.errors import SettingsError
from imece.settings import Settings
from imece_worker import log, processor
from imece_worker.processor import Processor
from imece_worker.worker import touchable


def prepare(settings: Settings) -> None:
    """Sets up the log. Raises SettingsError if the heartbeat file cannot be touched."""
    log.set_up(settings)
    if settings.heartbeat_file is not None and (flaw := touchable(settings.heartbeat_file)):
        raise SettingsError(f"IMECE_HEARTBEAT_FILE: {flaw}")


def load_processor(settings: Settings) -> Processor:
    """Raises SettingsError if there is none, or it cannot be had."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # so that a script beside the user is found, as with python -m
    return processor.load(settings)
