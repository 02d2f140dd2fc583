"""The version of the processor that would process the files of a run."""

import json

from redis import Redis

from imece import version
from imece.run import keys
from imece.settings import Settings
from imece.version import Version


def here(settings: Settings, name: str | None = None) -> Version | None:
    """That of the settings; None if they do not say it.

    Args:
        name: of the processor, if the run asks for one by name.
    """
    processing = settings.processing_by(name)
    return version.of(processing, settings.image) if processing is not None else None


def known(redis: Redis, settings: Settings, name: str | None) -> Version | None:
    """As `here`. Where the settings do not say it, as in Airflow, it is that which a worker has
    said last; None if there was none."""
    if (own := here(settings, name)) is not None:
        return own
    said = redis.hget(keys.versions(settings.queue), name or "")
    try:
        return Version.read(json.loads(said or b"null"))
    except ValueError:
        return None
