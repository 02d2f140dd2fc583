"""The version of the processor that would process the files of a run."""

import json

from redis import Redis

from imece import version
from imece.run import keys
from imece.settings import Settings
from imece.version import Version


def known(redis: Redis, settings: Settings) -> Version | None:
    """That of the settings. Where they name no processor, as in Airflow, it is that of the worker
    that started last; None if there was none."""
    if (own := version.of(settings)) is not None:
        return own
    try:
        return Version.read(json.loads(redis.get(keys.version(settings.queue)) or b"null"))
    except ValueError:
        return None
