"""Secrets in texts of others: what pods, tests and programs write goes to logs, artifacts and records. Pure.

Masked are credentials that a text shows by their form (passwords in URLs, `Authorization` headers, assignments to names
such as `password`, keys of well-known services, private keys), and given values, such as those of a pod's Secrets, as
they are and in base64. A secret in a form that nobody knows, and that is no value of a Secret, cannot be recognised.
"""

import base64
import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

MARK = "***"
_SHORTEST = 6
"""A shorter value, such as `true` or `5432`, stands everywhere: masking it would make texts unreadable."""
_NAMES = r"pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?"
_ASSIGNED = r"=\s{0,3}(?=[^\s=])"
_NO_WORD = r":\s{0,3}(?=\S{0,60}[\d_!$%&?+/-])"
"""After `name:` stands a secret, unless it is a word: prose has colons, too."""
_FORMS = re.compile(
    "|".join(
        (
            r"(?P<url>\b[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s/:@'\"]{0,200}:)[^\s@/]{1,200}(?=@)",
            r"(?P<scheme>\b(?:bearer|basic)\s{1,3})[A-Za-z0-9._~+/=-]{8,}",
            rf"(?P<name>(?:{_NAMES})\w{{0,20}}[\"']?\s{{0,3}}(?:{_ASSIGNED}|{_NO_WORD})[\"']?)[^\s\"',;&]{{3,400}}",
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:(?!-----BEGIN)[\s\S]){0,8000}?(?:-----END[A-Z ]{0,40}-----|\Z)",
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
            r"\bgh[pousr]_[A-Za-z0-9]{20,255}\b",
            r"\bgithub_pat_[A-Za-z0-9_]{20,255}\b",
            r"\bglpat-[A-Za-z0-9_-]{16,64}",
            r"\bxox[abeoprs]-[A-Za-z0-9-]{10,250}",
            r"\bhooks\.slack\.com/services/[A-Za-z0-9/]{10,120}",
            r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{10,100}",
            r"\bAIza[A-Za-z0-9_-]{30,60}",
            r"\bnpm_[A-Za-z0-9]{30,60}\b",
            r"\beyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,8000}(?:\.[A-Za-z0-9_-]{0,4000})?",
        )
    ),
    re.IGNORECASE,
)


def masked(text: str, values: Iterable[str] = ()) -> str:
    """The text with `***` in place of secrets; masking it again changes nothing.

    Args:
        text: of others.
        values: secrets that are known, such as those of the Secrets that a pod uses; short ones are left out.
    """
    for value in sorted(_with_base64(values), key=len, reverse=True):
        text = text.replace(value, MARK)
    return _FORMS.sub(lambda match: f"{match['url'] or match['scheme'] or match['name'] or ''}{MARK}", text)


def _with_base64(values: Iterable[str]) -> set[str]:
    """The values that are worth masking, and how they look in base64 and on each of their lines."""
    lines = {line.strip() for value in values for line in (value, *value.splitlines())}
    plain = {line for line in lines if len(line) >= _SHORTEST and line != MARK}
    return plain | {base64.b64encode(value.encode()).decode() for value in plain}


Shown = Annotated[str, AfterValidator(masked)]
"""A text of others in a result that people see: masked when it is made."""

__all__ = ["MARK", "Shown", "masked"]
