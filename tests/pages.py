"""The pages of docs/, read as text: their blocks of code, their links, and the list of all of them.

`python -m tests.pages` prints docs/llms.txt.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
"""Pages beside docs/, for people who look at the repository."""

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
WORD = re.compile(r"<!-- (.*) -->\s*\Z")
SHORT = 70
"""Characters that a summary has at least, if the page goes on."""

NOT_RUN = "not run: "
EXIT_CODE = "exit code: "
IN_BACKGROUND = "in the background"


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        title: the file that the reader saves it as.
        word: what an HTML comment right before it says of it.
        line: where it begins, counted from 1.
    """

    language: str
    title: str | None
    word: str
    text: str
    line: int

    @property
    def is_command(self) -> bool:
        return self.language == "sh" and self.title is None

    @property
    def runs(self) -> bool:
        return self.is_command and not self.word.startswith(NOT_RUN)

    @property
    def exit_code(self) -> int:
        return int(self.word.removeprefix(EXIT_CODE)) if self.word.startswith(EXIT_CODE) else 0


def pages() -> list[Path]:
    return [*sorted(DOCS.rglob("*.md")), *(page for page in OTHERS if page.exists())]


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = []
    for fence in FENCE.finditer(text):
        word = WORD.search(text[: fence.start()])
        found.append(
            Block(
                fence["language"],
                fence["title"],
                word[1] if word else "",
                textwrap.dedent(fence["text"]),
                text.count("\n", 0, fence.start()) + 1,
            )
        )
    return found


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """The names that the site gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


def summary(page: Path) -> str:
    """The first sentences of a page: what it is about."""
    for paragraph in prose(page).split("\n\n")[1:]:
        text = " ".join(paragraph.split())
        if re.match(r"[A-Za-z`*]", text):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text.replace("*", ""))
            first, *others = re.split(r"(?<=[.:]) ", plain)
            while others and len(first) < SHORT:
                first += f" {others.pop(0)}"
            return first.rstrip(":.") + "."
    return ""


def sections() -> Iterator[tuple[str, list[tuple[str, Path]]]]:
    """The site's navigation: each section with the titles and paths of its pages."""
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    for entry in navigation:
        for name, below in entry.items():
            yield name, list(_flat(name, below))


def _flat(name: str, below: object) -> Iterator[tuple[str, Path]]:
    if isinstance(below, str):
        yield name, DOCS / below
    elif isinstance(below, dict):
        for inner, deeper in below.items():
            yield from _flat(inner, deeper)
    elif isinstance(below, list):
        for item in below:
            yield from _flat(name, item)


def llms() -> str:
    """docs/llms.txt."""
    lines = ["# imece", "", f"> {summary(DOCS / 'index.md')}"]
    for name, found in sections():
        lines += ["", f"## {name}", ""]
        for title, page in found:
            about = summary(page)
            link = f"[{title}]({page.relative_to(DOCS)})"
            lines.append(f"- {link}: {about}" if about else f"- {link}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(llms(), end="")
