"""A processor: the metrics of one Python source file, as JSON.

    imece local SOURCES OUT --processor examples.metrics:measure --suffix .json

A file that does not parse raises SyntaxError: imece keeps the traceback and goes on.
"""

import ast
import json
from pathlib import Path


def measure(source: str, target: str) -> None:
    """Reads the file at `source`, writes what it counts to `target`."""
    text = Path(source).read_bytes()
    nodes = list(ast.walk(ast.parse(text, filename=source)))
    metrics = {
        "bytes": len(text),
        "lines": text.count(b"\n"),
        "functions": sum(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes
        ),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "imports": sum(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes),
        "branches": sum(isinstance(node, ast.If | ast.For | ast.While | ast.Try) for node in nodes),
    }
    Path(target).write_text(json.dumps(metrics))
