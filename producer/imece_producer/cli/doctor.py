"""`imece doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imece_producer import display
from imece_producer.cli.app import app, find_settings
from imece_producer.cli.options import (
    Context,
    Json,
    Namespace,
)
from imece_producer.display import put, put_json

if TYPE_CHECKING:
    pass


@app.command(epilog="Examples:\n\n  imece doctor /data/in /data/out -n imece")
def doctor(
    source: Annotated[
        Path | None, typer.Argument(metavar="[IN]", help="[IMECE_INPUT]", show_default=False)
    ] = None,
    target: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="[IMECE_OUTPUT]", show_default=False)
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Look at everything a run needs, and say how to fix what is wrong.

    Redis, the cluster, KEDA, the volume claim, clocks, the processor, the directories. Exit code
    0: it works (there may be warnings); 2: settings; 3: a service.
    """
    from imece_producer import doctor as surgery

    made = []
    for check in surgery.checks(find_settings(None, context, namespace), source, target):
        made.append(check)
        if as_json:
            put_json(check.summary())
        else:
            put(display.check(check))
    raise typer.Exit(surgery.exit_code(made))
