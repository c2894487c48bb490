r"""Replaces secrets by `***` in what others wrote: pods, tests, programs. Pure.

A secret is known by its shape (`_SHAPES`: passwords in URLs, `password=…`, bearer tokens, keys of well-known services,
private keys), or by its value (`Mask.with_values`: Secrets of an environment, variables of this process). A text is
masked where it enters, before it is cut: half of a secret has no shape.

Left as they are, so that texts stay readable: values shorter than 6 characters, common words (`_COMMON`), and plain
words behind a colon (`token: expired`). A secret that has no shape and that we cannot read is not recognized.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

MARK = "***"
_SHORTEST_VALUE = 6
_SHORTEST_LINE = 16
"""A shorter line of a file in a Secret is no secret by itself: `logging:`."""
_COMMON = frozenset(
    """
    access account backend client cluster database default development disabled docker enabled example frontend
    localhost master memcached mongodb nginx password postgres postgresql primary production public rabbitmq replica
    secret server service staging standard testing username
    """.split()  # noqa: SIM905 - a line of words is easier to read than a column of strings
)
_SECRET_VARIABLE = re.compile(r"(TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|KEY|CREDENTIALS?|AUTH_STRING)$", re.IGNORECASE)
_PASSES = 5
"""What one pass writes may show another secret to the next; two passes are usual, and a limit keeps the time linear."""
_MARGIN = 4
"""How much more than is shown is masked: what the cut leaves of a secret is beyond what is shown."""

# --- shapes ----------------------------------------------------------------------------------------------------------
# Linear time: a pattern repeats without a limit only what cannot contain its own beginning, or what nothing after it
# can reject.

_NAME = r"""
    (?=[acelmpst?&_-])  # quick: most letters begin none of these
    (?: (?P<password>passw(?:or)?d|passphrase) | pwd(?!\s*=\s*/) | [_-]pass(?![a-z])
      | secret | token | credential | signature | auth[_-]?string | [?&]sig(?==)
      | (?: access | account | api | auth | encryption | license | master | private | session | signing )[_-]?key )
    (?! s?[_-]?(?:name|ref) )  # of an object: secretName
    [\w-]{0,32}
"""
_PLAIN_WORD = r"(?! [a-z]{1,15} [.,;:]? (?:\s|$) )"
_PORT = r"""(?! \d{1,5} (?:[/?\#"\\<>}\]|`\s]|$) )"""


def _shape(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.VERBOSE)


_PEM_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----")
_PEM_HEADER = r"(?:Proc-Type|DEK-Info|Version|Comment):[^\n]*"
_PEM_LINE = re.compile(rf"\s*(?:{_PEM_HEADER}|[A-Za-z0-9+/=]*)\s*|(?:.*\s)?[A-Za-z0-9+/=]{{16,}}\s*")
"""Also behind a prefix, as builders write it."""

_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    # private keys: a block, also without its end, and the rest of a block whose begin was cut off
    (re.compile(rf"{_PEM_BEGIN.pattern}(?:{_PEM_HEADER}|[A-Za-z0-9+/=]+|[\s\\])*(?:{_PEM_END.pattern})?"), MARK),
    (re.compile(rf"\A[\sA-Za-z0-9+/=]+{_PEM_END.pattern}"), MARK),
    # scheme://user:password@host, also where the password contains what a URL would have to quote, such as / and @
    (_shape(rf"(://[^\s:/?\#@]*:) {_PORT} [^\s\"<>`]{{1,2000}} @"), rf"\1{MARK}@"),
    (_shape(r"(https?://) [^\s/?\#@]+ @"), rf"\1{MARK}@"),  # here the user may be a token
    (_shape(r"(hooks\.slack\.com/(?:services|workflows)/) [^\s\"'<>]+"), rf"\1{MARK}"),
    # headers
    (
        _shape(
            rf"""(authorization (?:\\*["'])? [ \t]* [:=] [ \t]* (?:\\*["'])?
            (?: (?:basic|bearer|token|digest|negotiate|apikey) [ \t]+ )? ) (?-i:{_PLAIN_WORD}) [^\s"'\\]+"""
        ),
        rf"\1{MARK}",
    ),
    (_shape(r"(bearer [ \t]+) [\w.~+/=-]{8,}"), rf"\1{MARK}"),
    # password=…, "password": "…" (also inside a JSON string: \"), token: …, --password …
    (
        _shape(
            rf"""(?P<name>{_NAME}) (?:
                (?P<quoted> (?:\\*["'])? [ \t]* (?:=>|:=|[:=]) [ \t]* )
                (?: (?P<escaped>\\+["']) [^"'\\\n]+
                  | (?P<double>") (?:[^"\\\n]|\\.)+
                  | (?P<single>') (?:[^'\\\n]|\\.)+ )
              | (?P<assigned> [ \t]* = [ \t]* ) [^\s"'`]+
              | (?P<labelled> : [ \t]* ) (?(password)|(?-i:{_PLAIN_WORD})) [^\s"'`]+
            )"""
        ),
        rf"\g<name>\g<quoted>\g<escaped>\g<double>\g<single>\g<assigned>\g<labelled>{MARK}",
    ),
    (_shape(rf"""(--(?:[a-z0-9]{{1,16}}-){{0,3}}{_NAME} [ \t]+) [^\s"'`-] [^\s"'`]*"""), rf"\1{MARK}"),
    # keys of well-known services
    (
        re.compile(
            r"""
            (?:AKIA|ASIA)[0-9A-Z]{16,} (?: [^A-Za-z0-9+/*]{1,20} [A-Za-z0-9+/]{40,} )?  # AWS: the id, and its secret
          | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,}
          | gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent|imt|oas)-[\w.-]{16,}
          | xox[a-z]-[\w-]{8,} | xapp-[\w-]{16,}
          | (?:sk|rk)_(?:live|test)_\w{10,} | whsec_\w{16,}
          | AIza[\w-]{30,} | ya29\.[\w-]{20,}
          | npm_[A-Za-z0-9]{30,} | pypi-[\w-]{30,} | dckr_pat_[\w-]{20,}
          | hv[sb]\.[\w-]{20,} | SG\.[\w-]{16,}\.[\w-]{16,}
          | sk-(?:proj|ant|svcacct)-[\w-]{20,} | sk-[A-Za-z0-9]{32,}
          | pn[ub]_[A-Za-z0-9]{30,}  # Prefect Cloud
          | eyJ[\w+/=-]{16,}(?:\.[\w-]+){0,4}  # JSON in base64: JWT, logins of registries
            """,
            re.VERBOSE,
        ),
        MARK,
    ),
)

# --- masks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mask:
    """Replaces secrets in texts.

    Attributes:
        literals: texts that are secret, in all forms that they may have, longest first.
    """

    literals: tuple[str, ...] = ()

    def with_values(self, values: Iterable[str | bytes]) -> "Mask":
        """A mask that also knows these values: of Secrets, of variables, of a login."""
        literals = {form for value in values for form in _forms(value)}
        return Mask(tuple(sorted(literals.union(self.literals), key=lambda literal: (-len(literal), literal))))

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        for _ in range(_PASSES):
            masked = self._masked_once(text)
            if masked == text:
                break
            text = masked
        return text

    def head(self, text: str, longest: int) -> str:
        """The first `longest` characters of the text without secrets."""
        return self(text[: longest * _MARGIN])[:longest]

    def tail(self, text: str, longest: int) -> str:
        """The last `longest` characters of the text without secrets."""
        return self(text[-longest * _MARGIN :])[-longest:]

    def line_by_line(self) -> Callable[[str], str]:
        """A function for the lines of one output, in their order: a private key has several."""
        in_key = False

        def masked(line: str) -> str:
            nonlocal in_key
            ends = bool(_PEM_END.search(line))
            if in_key and (ends or _PEM_LINE.fullmatch(line)):
                in_key = not ends
                return MARK
            in_key = bool(_PEM_BEGIN.search(line)) and not ends
            return self(line)

        return masked

    def _masked_once(self, text: str) -> str:
        for literal in self.literals:
            text = text.replace(literal, MARK)
        for pattern, replacement in _SHAPES:
            text = pattern.sub(replacement, text)
        return text


BY_SHAPE = Mask()
"""Knows no values."""


def secrets_in(variables: Mapping[str, str]) -> Iterator[str]:
    """The secrets among environment variables: by their names, and the passwords in URLs."""
    for name, value in variables.items():
        if _SECRET_VARIABLE.search(name):
            yield value
        else:
            yield from _passwords_of_urls(value)


def _forms(value: str | bytes) -> Iterator[str]:
    """All texts in which a value may appear: itself and its parts, each as it is and encoded."""
    encoded = value.encode(errors="surrogateescape") if isinstance(value, str) else value
    text = encoded.decode(errors="replace").strip()
    if "\ufffd" in text:  # a key store, for example
        yield from _in_base64(encoded)
        return
    for part in filter(_is_secret, {text, *_parts(text)}):
        in_json = (json.dumps(part, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
        yield from filter(_is_secret, {part, *in_json, quote(part, safe=""), unquote(part)})
        yield from _in_base64(part.encode())


def _is_secret(text: str) -> bool:
    """Whether a text is rare enough to be replaced wherever it appears."""
    return len(text.strip(" *")) >= _SHORTEST_VALUE and text.lower() not in _COMMON


def _parts(text: str) -> Iterator[str]:
    """What is secret inside of a value: passwords of URLs and logins, texts in JSON, long lines of a file."""
    yield from _passwords_of_urls(text)
    if login := re.fullmatch(r"[^\s:/]+:([^\s/]\S*)", text):
        yield login[1]
    if text.startswith(("{", "[")):
        yield from _texts_in_json(text)
    if "\n" in text:
        for line in text.splitlines():
            if len(line.strip()) >= _SHORTEST_LINE and not line.startswith("-----"):
                yield line.strip()


def _passwords_of_urls(text: str) -> Iterator[str]:
    for match in re.finditer(r"://([^\s/@]*)@", text):
        user, _, password = match[1].partition(":")
        yield password or user


def _texts_in_json(text: str) -> Iterator[str]:
    """The texts in a JSON document such as `.dockerconfigjson`; an `auth` in it is `user:password` in base64."""
    try:
        values = [json.loads(text)]
    except (ValueError, RecursionError):
        return
    while values:
        value = values.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value


def _in_base64(value: bytes) -> Iterator[str]:
    """The base64 of a value wherever it lies in what is encoded: `user:password`, or a file.

    Without the characters that also depend on the neighbours of the value.
    """
    for before in range(3):
        text = base64.b64encode(b"\0" * before + value).decode().rstrip("=")
        start = (0, 2, 3)[before]
        core = text[start : len(text) - (1 if (before + len(value)) % 3 else 0)]
        if len(core) >= _SHORTEST_VALUE:
            yield from (core, core.replace("+", "-").replace("/", "_"))


__all__ = ["BY_SHAPE", "MARK", "Mask", "secrets_in"]
