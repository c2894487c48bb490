"""Parse a Dockerfile: instructions with their lines, and variables. `recipe` carries the instructions out.

Source: docs.docker.com/reference/dockerfile ("Format", "Environment replacement"). Not supported, and refused with the
line: the `escape` directive, and here-documents.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_VARIABLE = re.compile(r"\\(?P<escaped>.)|\$(?:(?P<bare>\w+)|\{(?P<name>\w+)(?:(?P<operator>:[-+])(?P<word>[^}]*))?\})")


class Refused(Exception):
    """The builder `embedded` does not support something; the text has file and line."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in capitals, and the text after it."""

    name: str
    text: str
    where: str

    def refuse(self, why: str) -> Refused:
        """Return an error that names file, line and instruction."""
        return Refused(f"{self.where}: {self.name} {self.text[:60]}: {why}")

    def words(self, variables: Mapping[str, str]) -> list[str]:
        """The words after the instruction, without quotes and with variables replaced; a JSON list is accepted, too."""
        if listed := self.listed():
            return [substituted(word, variables) for word in listed]
        try:
            return shlex.split(substituted(self.text, variables))
        except ValueError as error:
            raise self.refuse(str(error)) from error

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The pairs of ENV or LABEL: KEY=VALUE …, or the old form KEY VALUE."""
        words = self.words(variables)
        if words and "=" not in words[0]:
            return {words[0]: " ".join(words[1:])}
        if any("=" not in word for word in words):
            raise self.refuse("write KEY=VALUE")
        return {key: value for key, _, value in (word.partition("=") for word in words)}

    def command(self) -> list[str]:
        """The command of CMD or ENTRYPOINT: a JSON list, or a line for the shell."""
        return self.listed() or ["/bin/sh", "-c", self.text]

    def listed(self) -> list[str]:
        """The words of the exec form; empty for the shell form."""
        try:
            words = json.loads(self.text)
        except ValueError:
            return []
        return [str(word) for word in words] if isinstance(words, list) else []


def read(text: str, name: str) -> Iterator[Instruction]:
    """Read the instructions of a Dockerfile called `name`, in order."""
    began, gathered = 0, ""
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if re.match(r"#\s*escape\s*=\s*`", line):
            raise Refused(f"{name}:{number}: escape characters other than \\ are not supported")
        if not line or line.startswith("#"):
            continue
        began, gathered = began or number, gathered + line.removesuffix("\\") + " "
        if not line.endswith("\\"):
            yield _instruction(gathered, f"{name}:{began}")
            began, gathered = 0, ""
    if gathered:
        yield _instruction(gathered, f"{name}:{began}")


def _instruction(line: str, where: str) -> Instruction:
    word, _, rest = line.strip().partition(" ")
    instruction = Instruction(word.upper(), rest.strip(), where)
    if instruction.name in ("RUN", "COPY", "ADD") and re.search(r"(^|\s)<<-?\w", rest):
        raise instruction.refuse("here-documents are not supported")
    return instruction


def substituted(text: str, variables: Mapping[str, str]) -> str:
    """Replace $NAME, ${NAME}, ${NAME:-default} and ${NAME:+other} in a text."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$" if match["escaped"] == "$" else match[0]
        known = variables.get(match["bare"] or match["name"], "")
        if match["operator"] == ":+":
            return match["word"] if known else ""
        return known or match["word"] or ""

    return _VARIABLE.sub(value, text)
