"""A task's way to the page of its run."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk import BaseHook, BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

RUN_URL = "run_url"
"""The field in the extra of the Redis connection: the address of a run's page, a dashboard for
example, with `{run}` where the run id goes. Without it there is no button."""


class ImeceRunLink(BaseOperatorLink):
    """The button "imece run". It is there from the moment at which the task waits."""

    @property
    def name(self) -> str:
        return "imece run"

    def get_link(self, operator: "BaseOperator", *, ti_key: Any) -> str:
        """Called where the task runs. An empty address is no button."""
        conn_id, run_id = getattr(operator, "redis_conn_id", None), getattr(operator, "_id", "")
        if not conn_id:
            return ""
        try:
            pattern = BaseHook.get_connection(conn_id).extra_dejson.get(RUN_URL)
        except AirflowNotFoundException:  # which the task itself has said
            return ""
        if not isinstance(pattern, str) or not pattern.startswith(("https://", "http://")):
            return ""
        return pattern.replace("{run}", quote(run_id, safe=""))
