"""`@task.imece`: a function says which folder to process."""

from collections.abc import Callable, Collection, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    DecoratedOperator,
    TaskDecorator,
    TaskDeferred,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from imece_producer.airflow.run import ImeceRunOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

WHERE = {"run_id", "run_queue", "redis_conn_id", "kubernetes_conn_id"}
"""What says where the run is: the decorator's alone. A task that is killed, or waits too long,
finds its run without calling the function again."""

RETURNED = set(ImeceRunOperator.template_fields) - WHERE
"""What the function may return."""


class ImeceDecoratedOperator(DecoratedOperator, ImeceRunOperator):
    """A run whose fields a function returns: its input directory as text or a path, or a mapping
    of an `ImeceRunOperator`'s fields. What it does not return the decorator has.

    The function is called once for each try, before the run is enqueued.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *ImeceRunOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = (
        DecoratedOperator.template_fields_renderers
    )
    custom_operator_name = "@task.imece"
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        input_dir: str = "",
        output_dir: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            input_dir=input_dir,
            output_dir=output_dir,
            # Of the XCom, which is the run's; Airflow guesses it from what the function returns.
            **{**kwargs, "multiple_outputs": True},
        )

    def execute(self, context: "Context") -> dict[str, Any]:
        context_merge(context, self.op_kwargs)
        arguments = determine_kwargs(self.python_callable, self.op_args, context)
        given = self._checked(self.python_callable(*self.op_args, **arguments))
        self._take(given)
        self.render_template_fields(context)
        try:
            return super().execute(context)
        except TaskDeferred as deferred:
            deferred.kwargs = {**(deferred.kwargs or {}), "given": given}
            raise

    def resume(
        self, context: "Context", event: dict[str, Any], given: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        self._take(given or {})
        self.render_template_fields(context)
        return super().resume(context, event)

    def _take(self, given: dict[str, Any]) -> None:
        for name, value in given.items():
            setattr(self, name, value)

    def _checked(self, returned: Any) -> dict[str, Any]:
        name = self.python_callable.__name__
        if isinstance(returned, str | PathLike):
            returned = {"input_dir": returned}
        if not isinstance(returned, Mapping):
            raise AirflowFailException(
                f"{name} returned {type(returned).__name__}: return the input directory, or a "
                "mapping of the fields of an ImeceRunOperator"
            )
        if unknown := sorted(set(map(str, returned)) - RETURNED):
            where = sorted(WHERE.intersection(unknown))
            raise AirflowFailException(
                f"{name} returned {', '.join(unknown)}: "
                + (
                    f"give {', '.join(where)} to @task.imece(...) instead"
                    if where
                    else f"it may return {', '.join(sorted(RETURNED))}"
                )
            )
        given = {
            key: str(value) if isinstance(value, PathLike) else value
            for key, value in returned.items()
        }
        for field in ("input_dir", "output_dir"):
            if not given.get(field, getattr(self, field)):
                raise AirflowFailException(
                    f"there is no {field}: let {name} return it, or give it to @task.imece(...)"
                )
        return given


def imece_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """What `@task.imece` is; its arguments are those of an `ImeceRunOperator`."""
    made: TaskDecorator = task_decorator_factory(
        python_callable=python_callable,
        decorated_operator_class=ImeceDecoratedOperator,
        **kwargs,
    )
    return made
