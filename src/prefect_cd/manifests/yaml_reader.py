"""Read a text as kubectl reads it: YAML or JSON, one or several documents, every object with its line.

kubectl reads YAML with sigs.k8s.io/yaml, which is go-yaml v2: `resolve.go` there decides what a plain scalar is. It is
YAML 1.1 with exceptions: `y` and `N` are truth values, `1e3` and `08` numbers, `22:22` and dates strings. All numbers
then go through JSON: one that is no 64-bit integer is a float64, and a float64 without a fraction is an integer.

A commit's manifests are not trusted: YAML that would exhaust the memory is refused with its line.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import yaml

from prefect_cd.errors import InvalidManifest
from prefect_cd.pipeline.yaml_lines import MERGE_TAG, TEXT_TAG, PositionedLoader, Unreadable, line_of

_LONGEST_INT = 70  # characters; 64 bits have as many in binary notation
_EXPONENT_FROM = 1e21  # encoding/json writes smaller numbers without an exponent
_MAX_VALUES = 1_000_000  # in one document, counting what an alias stands for each time it is used
_INT_TAG, _FLOAT_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_NULL_TAG, _BOOL_TAG = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), _NULL_TAG),
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"), _BOOL_TAG),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"), _BOOL_TAG),
    "<<": MERGE_TAG,
}
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|0[0-7]*|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_FRACTION = re.compile(r"\.[0-9](_?[0-9])*([eE][-+]?[0-9](_?[0-9])*)?")  # underscores as strconv.ParseFloat


_BETWEEN = re.compile(r"(\s|^---$)*", re.MULTILINE)
_SURROGATES = re.compile(
    r"(?<!\\)(?P<before>(\\\\)*)\\u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})"
)
_ESCAPED_BY_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(frozen=True)
class Document:
    """One object of a text.

    Attributes:
        value: what it says, in the types that JSON has.
        line: where it begins, from 1.
        node: the same with positions.
    """

    value: Any
    line: int
    node: yaml.Node


def read(text: str, file: str) -> list[Document]:
    """The objects of a text; those of a list are unpacked, and empty documents and lists have none.

    Args:
        text: YAML or JSON.
        file: its name, for errors.

    Raises:
        InvalidManifest: with file:line. The text is not quoted, which may be a Secret's.
    """
    parts = _json_documents(text) or [text]
    try:
        return [document for part in parts for document in _read(part, file, _FastLoader)]
    except InvalidManifest:  # the messages and lines of PyYAML's own parser are better
        return [document for part in parts for document in _read(part, file, _Loader)]


def line_below(node: yaml.Node, *path: str | int) -> int:
    """The line of a key of nested maps and lists, or of the last one on the way that is in the text; from 1."""
    line = node.start_mark.line
    for step in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line
            continue
        members = node.value if isinstance(node, yaml.MappingNode) else ()
        entry = next((entry for entry in members if entry[0].value == step), None)
        if entry is None:
            break
        line, node = entry[0].start_mark.line, entry[1]
    return line + 1


def _json_documents(text: str) -> list[str]:
    """JSON documents as YAML that says the same in the same lines; empty when the text is anything else.

    JSON is YAML except for its escapes of characters beyond 16 bits, for tabs, and for characters that YAML escapes.
    """
    documents, at = [], 0
    while (at := _BETWEEN.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches everywhere
        try:
            _, end = _JSON.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        if text[at] != "{":  # kubectl takes nothing else for JSON
            return []
        document = _SURROGATES.sub(_character, text[at:end].replace("\t", " "))
        document = _ESCAPED_BY_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", document)
        documents.append("\n" * text.count("\n", 0, at) + document)
        at = end
    return documents


def _character(escapes: re.Match[str]) -> str:
    """The character of two escapes, after the escaped backslashes before them."""
    high, low = (int(escapes[group], 16) for group in ("high", "low"))
    return escapes["before"] + chr(0x10000 + ((high - 0xD800) << 10) + low - 0xDC00)


def _not_json(constant: str) -> None:
    raise ValueError(constant)


_JSON = json.JSONDecoder(parse_constant=_not_json)  # without Infinity and NaN


class _Refused(yaml.MarkedYAMLError):
    """Well-formed YAML that Kubernetes would reject, or read differently than it looks."""


class _Loader(PositionedLoader):
    """YAML as Kubernetes reads it, where every mistake has a line.

    Unlike in the pipeline file, an alias stays the node of its anchor: the size of a document with its aliases
    written out is counted node by node (`_count_values`), and a copy for each alias would take that much memory.
    """

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:  # noqa: ANN401  as in PyYAML
        """The tag of a node without one."""
        if kind is yaml.ScalarNode and implicit[0]:
            return _tag_of(value)
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002
        """Refuse values that JSON does not have. An unreadable value is not quoted: it may be a Secret's."""
        try:
            value = super().construct_object(node, deep)
        except Unreadable:
            raise _Refused(None, None, "a value that cannot be read; quote it", node.start_mark) from None
        if isinstance(value, date | bytes | set) or (isinstance(value, float) and not math.isfinite(value)):
            problem = f"a {type(value).__name__}, which JSON does not have; quote it"
            raise _Refused(None, None, problem, node.start_mark)
        return value


def _construct_number(_: _Loader, node: yaml.ScalarNode) -> int | float:
    if _NOT_FINITE.fullmatch(node.value):
        return math.nan  # refused where it stands
    return _number(node.value.replace("_", ""))


def _construct_bool(_: _Loader, node: yaml.ScalarNode) -> bool:
    if _CONSTANTS.get(node.value) != _BOOL_TAG:
        raise ValueError(node.value)
    return node.value[0] in "yYtT" or node.value.lower() == "on"


def _construct_text(_: _Loader, node: yaml.ScalarNode) -> str:
    return str(node.value)


_Loader.add_constructor(_INT_TAG, _construct_number)
_Loader.add_constructor(_FLOAT_TAG, _construct_number)
_Loader.add_constructor(_BOOL_TAG, _construct_bool)
_Loader.add_constructor(MERGE_TAG, _construct_text)  # `<<` merges as a key only


def _tag_of(text: str) -> str:
    """What go-yaml takes a plain scalar for."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NOT_FINITE.fullmatch(text):
        return _FLOAT_TAG
    has_digits = text[0] in "+-0123456789" or _FRACTION.fullmatch(text)
    plain = text.replace("_", "") if has_digits else text
    if _is_integer(plain):
        return _INT_TAG
    if _FLOAT.fullmatch(plain) and math.isfinite(float(plain)):
        return _FLOAT_TAG
    return TEXT_TAG


def _is_integer(plain: str) -> bool:
    """Whether a plain scalar without underscores is an integer of 64 bits, with or without a sign."""
    return len(plain) <= _LONGEST_INT and bool(_INT.fullmatch(plain)) and -(2**63) <= _integer(plain) < 2**64


def _integer(plain: str) -> int:
    """An integer in any notation of Go: `0644` is octal."""
    digits = plain.lstrip("+-")
    number = int(digits, 8) if digits.isdigit() and digits.startswith("0") else int(digits, 0)
    return -number if plain.startswith("-") else number


def _number(plain: str) -> int | float:
    """A number as it arrives after YAML, JSON and Go's decoder of JSON."""
    if _is_integer(plain):
        number = _integer(plain)
        return number if number < 2**63 else float(number)
    real = float(plain)
    if abs(real) < _EXPONENT_FROM and real == int(real):  # Go writes its shortest digits, padded with zeros
        number = int(Decimal(repr(real)))
        return number if -(2**63) <= number < 2**63 else real
    return real


if yaml.__with_libyaml__:

    class _FastLoader(yaml.cyaml.CParser, _Loader):  # type: ignore[name-defined,misc]  # missing in its stubs
        """The same, five times faster: libyaml parses.

        PyYAML still composes, because the recursion of libyaml's composer overflows the stack on deep nesting, which
        ends the process.
        """

        def __init__(self, text: str) -> None:
            yaml.cyaml.CParser.__init__(self, text)  # type: ignore[attr-defined]
            yaml.composer.Composer.__init__(self)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

        check_node = yaml.composer.Composer.check_node
        get_node = yaml.composer.Composer.get_node

else:
    _FastLoader = _Loader  # type: ignore[assignment,misc]


def _read(text: str, file: str, loader_class: "type[_Loader]") -> Iterator[Document]:
    try:
        loader = loader_class(text)
        while loader.check_node():
            document = loader.get_node()
            if document is None:
                continue
            _count_values(document, {})
            for node, defaults in _items(document):
                line = node.start_mark.line + 1
                value = _plain(loader.construct_document(node), f"{file}:{line}")
                if isinstance(value, dict) and not {"apiVersion", "kind"} & value.keys():
                    value = {**defaults, **value}
                if value is not None:
                    yield Document(value, line, node)
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context
        # `from None`: the error of PyYAML quotes the line, which may be a Secret's.
        raise InvalidManifest(
            str(problem) if isinstance(error, _Refused) else f"not YAML: {problem}",
            where=f"{file}:{line_of(error, text)}",
            hint="correct the file; `kubectl create --dry-run=client -o yaml -f FILE` reads it as Kubernetes does",
        ) from None
    except yaml.reader.ReaderError as error:
        raise InvalidManifest(f"not YAML: {error.reason}", where=f"{file}:{line_of(error, text)}") from None
    except (RecursionError, UnicodeEncodeError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else "not YAML: half of a surrogate pair"
        raise InvalidManifest(problem, where=f"{file}:1") from None


def _count_values(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values in a node, counting what an alias stands for each time it is used; checks keys on the way.

    Args:
        node: where to count.
        sizes: the counts of nodes that were visited already, by id; 0 while the node is being counted.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _Refused(None, None, "an alias inside its own anchor", node.start_mark)
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        size += sum(_count_values(value, sizes) for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_count_values(value, sizes) for value in node.value)
    if size > _MAX_VALUES:
        raise _Refused(None, None, "too large once its aliases are expanded", node.start_mark)
    sizes[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse keys that are not strings, and duplicate keys, of which YAML would keep one.

    Integers count as strings, as kubectl reads them.
    """
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == MERGE_TAG:
            continue
        if key.tag not in {TEXT_TAG, _INT_TAG}:
            problem = (
                f"key {key.value} is not a string" if isinstance(key, yaml.ScalarNode) else "a key is not a string"
            )
            raise _Refused(None, None, f"{problem}; quote it", key.start_mark)
        plain = key.value.replace("_", "")
        name = str(_integer(plain)) if key.tag == _INT_TAG and _is_integer(plain) else key.value
        if name in lines:
            problem = f"duplicate key {name}, first in line {lines[name]}"
            raise _Refused(None, None, problem, key.start_mark)
        lines[name] = key.start_mark.line + 1


def _items(node: yaml.Node, defaults: dict[str, str] | None = None) -> Iterator[tuple[yaml.Node, dict[str, str]]]:
    """The nodes of a document's objects, and the apiVersion and kind of those that have neither.

    A document is one object, or a list: `List`, or for example `ConfigMapList`, whose objects need not repeat what
    they are (`decodeToList` in k8s.io/apimachinery, `unstructured/helpers.go`).
    """
    members = {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
    kind = members["kind"].value if "kind" in members else ""
    items = members.get("items")
    is_list = isinstance(kind, str) and kind.endswith("List")
    if not is_list or items is None or not (isinstance(items, yaml.SequenceNode) or items.tag == _NULL_TAG):
        yield node, defaults or {}
        return
    version = members["apiVersion"].value if "apiVersion" in members else ""
    inherited = {"apiVersion": version, "kind": kind.removesuffix("List")} if kind != "List" else {}
    for item in items.value if isinstance(items, yaml.SequenceNode) else ():
        yield from _items(item, inherited)


def _plain(document: object, where: str) -> Any:  # noqa: ANN401
    """The document with the types that JSON has: keys become strings, and aliased values become copies."""
    try:
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise InvalidManifest("a value that JSON does not have", where=where, hint="quote it") from error
    return json.loads(text)
