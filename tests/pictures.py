"""Makes docs/images/demo.svg: `python -m tests.pictures`. Needs tmux."""

import io
import re
import subprocess

from rich.console import Console
from rich.text import Text

from tests.conftest import ROOT

PICTURE = ROOT / "docs/images/demo.svg"
WIDTH, HEIGHT = 100, 44
SESSION = "imece-picture"


def tmux(*words: str) -> str:
    return subprocess.run(["tmux", *words], check=True, capture_output=True, text=True).stdout


def screen(command: str) -> str:
    """What a terminal shows after a command, with its colours as escape sequences."""
    size = ("-x", str(WIDTH), "-y", str(HEIGHT))
    typed = f"{command}; tmux wait-for -S {SESSION}; sleep 3600"
    tmux("new-session", "-d", "-s", SESSION, *size, "-c", str(ROOT), typed)
    try:
        tmux("wait-for", SESSION)
        return tmux("capture-pane", "-e", "-p", "-t", SESSION)
    finally:
        tmux("kill-session", "-t", SESSION)


def main() -> None:
    shown = screen("make demo").rstrip()
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make demo"))
    console.print(Text.from_ansi(shown))
    svg = console.export_svg(title="make demo", unique_id="imece")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # they are on another host
    PICTURE.write_text(svg.replace("Fira Code", "DejaVu Sans Mono"))


if __name__ == "__main__":
    main()
