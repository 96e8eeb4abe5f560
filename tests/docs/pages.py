"""The pages of the documentation, read as their readers see them: blocks of code with the marks in front.

A mark is an HTML comment in front of a block:

    <!-- not run: REASON -->             the block is only compiled
    <!-- in tests: `OLD` is `NEW`; … --> the block is run with NEW for OLD, so that it takes seconds
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md"))}
TEXTS = PAGES | {name: ROOT / name for name in ("README.md", "CONTRIBUTING.md")}
COLUMN = 93  # characters of code that the column of the site shows on a screen of 1300 pixels
SHELLS = ("bash", "console", "sh")

_BLOCK = re.compile(
    r"(?:^[ \t]*<!-- (?P<mark>[^\n]*?) -->\s*?\n\s*?)?"
    r"^(?P<indent>[ \t]*)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)


@attrs.frozen(kw_only=True)
class Block:
    """A block of code of a page."""

    page: str
    language: str
    code: str
    mark: str

    @property
    def not_run(self) -> str | None:
        """Why it is not run; None where it is."""
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else None

    @property
    def replaced(self) -> list[tuple[str, str]]:
        """What is other in tests."""
        if not self.mark.startswith("in tests: "):
            return []
        found = re.findall(r"`([^`]+)` is `([^`]+)`", self.mark)
        assert found, f"{self.page}: {self.mark}"
        return found

    def in_tests(self) -> str:
        """Return the code as it is run in tests."""
        code = self.code
        for old, new in self.replaced:
            assert old in code, f"{self.page}: the mark speaks of {old!r}, which is not in the block"
            code = code.replace(old, new)
        return code


def blocks(page: str, *languages: str) -> list[Block]:
    """Return the blocks of a page in these languages; of all where none is named."""
    text = TEXTS[page].read_text(encoding="utf-8")
    found = [
        Block(
            page=page,
            language=match["language"],
            code=re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE),
            mark=match["mark"] or "",
        )
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def without_code(page: str) -> str:
    """Return the text of a page without its blocks and inline code."""
    text = _BLOCK.sub("", TEXTS[page].read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def shell_commands(page: str) -> Iterator[list[str]]:
    """Yield the words of each command of the shell blocks, without prompts, variables and redirections."""
    for block in blocks(page, *SHELLS):
        for line in block.code.replace("\\\n", " ").splitlines():
            prompt = re.match(r"[$#] ", line)
            if block.language == "console" and prompt is None:
                continue  # what a command prints
            yield from _commands(line[2:] if prompt and block.language == "console" else line)


def _commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    command: list[str] = []
    words = list(lexer)
    skip = False
    for word in [*words, ";"]:
        if skip:
            skip = False
        elif word in ("<", ">", ">>"):
            skip = True  # the file behind it
        elif set(word) <= set("&|;"):
            while command and re.fullmatch(r"\w+=.*", command[0]):
                del command[0]
            if command:
                yield command
            command = []
        else:
            command.append(word)


def anchors(page: str) -> set[str]:
    """Return what a link may name behind `#`: the headings, as the site writes them, and the `{#names}`."""
    text = re.sub(r"^```.*?^```", "", TEXTS[page].read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = set(re.findall(r"\{#([\w-]+)\}", text)) | set(re.findall(r'\bid="([\w-]+)"', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading).lower()).strip()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found
