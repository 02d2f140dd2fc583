"""The command line `imece`, a module for each group of commands."""

# The help lists the commands in this order.
from imece_producer.cli import enqueue, runs, failures, ledger, redo, cluster, new  # isort: skip
from imece_producer.cli.app import app

__all__ = ["app", "cluster", "enqueue", "failures", "ledger", "new", "redo", "runs"]
