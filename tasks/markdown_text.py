r"""How a text of others becomes Markdown: the one place where it is escaped, by the kind of its place. Pure.

Subjects of commits, names of objects and tests, messages of pods: whoever may push decides what they are. They are
shown as they are, and begin no heading, list, table, link, picture or HTML.

Both user interfaces of Prefect decide how: the older one shows character references (`&lt;`) as they are written, so
that only backslashes escape; the newer one makes links of addresses even where they are escaped, so that addresses
become code, in which nothing has a meaning.
"""

import re
from collections.abc import Iterable, Sequence

from prefect_cd.untrusted_text import one_line, visible

_SPECIAL = re.compile(
    r"[\\`*\[\]<>|~&#]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # inside of a word, an underscore has no meaning
    r"|^[-+=:]|^\d{1,9}[.)](?= |$)"  # would begin a list or underline a heading
)
_PLAIN = r"[^`|\\*<>\[\]]"  # what the older interface looks for in code, too, when it looks for the end of bold text
_CODE = re.compile(
    rf"(?<!`)`({_PLAIN}+)`(?!`)"
    rf"|((?:(?:https?|ftp)://|www\.)(?:(?! ){_PLAIN})*|[-.\w+]+@[-\w]+\.[-.\w]+)",  # what becomes a link by itself
    re.IGNORECASE,
)
_SAFE_URL = re.compile(r"https?://[\w.:\[\]-]+(/[\w./?&=%:@,;~+-]*)?", re.ASCII)


def inline(text: object) -> str:
    """A text inside of a paragraph, heading, list, cell or link; addresses and what stands in backticks become code."""
    shown, parts, at = one_line(text), [], 0
    for match in _CODE.finditer(shown):
        parts += [_escaped(shown, at, match.start()), code(match[1] or match[2])]
        at = match.end()
    return "".join([*parts, _escaped(shown, at, len(shown))])


def _escaped(text: str, begin: int, end: int) -> str:
    return _SPECIAL.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", text[begin:end])


def bold(text: object) -> str:
    """A text in bold; an empty one would leave the marks alone, which mean something else."""
    return f"**{inline(text) or '(empty)'}**"


def code(text: object) -> str:
    """A text as code in a line, but not in a table: there, no escape keeps a `|` from ending the cell."""
    shown = one_line(text)
    fence = _fence(shown, 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}" if shown else ""


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any in the text, so that the text cannot end it."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{visible(text.rstrip(), keep=chr(10))}\n{fence}"


def _fence(text: str, shortest: int) -> str:
    return "`" * max(shortest, 1 + max(map(len, re.findall("`+", text)), default=0))


def link(text: object, url: str) -> str:
    """A link; only its text where the address is not one that we would write."""
    return f"[{inline(text)}]({url})" if _SAFE_URL.fullmatch(url) else inline(text)


def image(title: object, uri: str) -> str:
    """A picture of ours, whose data is in its URI."""
    return f"![{inline(title)}]({uri})"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; its cells are texts of others."""
    return table_of_markdown(head, (map(inline, row) for row in rows))


def table_of_markdown(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; its cells are Markdown already."""
    lines = ["| " + " | ".join(row) + " |" for row in (map(inline, head), *rows)]
    return "\n".join([lines[0], "| " + " | ".join(["---"] * len(head)) + " |", *lines[1:]])


def bullets(*lines: str) -> str:
    """A list of lines that are Markdown already; empty ones are left out."""
    return "\n".join(f"- {line}" for line in lines if line)


__all__ = ["bold", "bullets", "code", "fenced", "image", "inline", "link", "table", "table_of_markdown"]
