"""Request and response bodies: JSON, YAML and protobuf, and the shape of an answer.

Duplicate keys are found while parsing, because a mapping no longer shows them. Sources: the API concepts page for media
types and shapes, a server of 1.36 for the messages about duplicate keys.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from aiohttp import web

from prefect_cd_local.apiserver import protobuf
from prefect_cd_local.apiserver.errors import Refusal, bad_request, bad_value, invalid
from prefect_cd_local.apiserver.options import APPLY, JSON, PATCHES, Options
from prefect_cd_local.apiserver.schema import canonical

Object = dict[str, Any]
_JSON, _YAML, _PROTOBUF = MEDIA = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
_ESCAPED, _SURROGATE = re.compile(r"\\u[dD][89a-fA-F]"), re.compile("[\ud800-\udfff]")
_SHAPES = {"", "Table", "PartialObjectMetadata", "PartialObjectMetadataList"}
_SHOWN = 1024


class Body(NamedTuple):
    """A parsed body, and messages about its duplicate keys."""

    value: Any
    duplicates: list[str]


class _MappingWithDuplicates(dict[str, Any]):
    """A mapping whose text has duplicate keys; the last value counts."""

    duplicate_keys: tuple[str, ...] = ()


class _Loader(yaml.SafeLoader):
    """YAML as the API reads it: timestamps stay text, and duplicate keys are recorded."""

    yaml_implicit_resolvers = {  # noqa: RUF012  declared so in the base class
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.duplicates: dict[int, str] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                self.duplicates[line] = f'line {line}: key "{key.value}" already set in map'
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse(text: str, *, as_yaml: bool) -> Body:
    """Parse JSON or YAML.

    Raises:
        ValueError: it is neither.
    """
    if not as_yaml:
        value = json.loads(text, object_pairs_hook=_mapping)
        return Body(value, [f'duplicate field "{path}"' for path in _duplicates(value)])
    loader = _Loader(text)
    try:
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"yaml: {error}") from error
    finally:
        loader.dispose()
    if _ESCAPED.search(text) and _SURROGATE.search(json.dumps(value, ensure_ascii=False, default=str)):
        raise ValueError("yaml: found invalid Unicode character escape code")
    return Body(value, [loader.duplicates[line] for line in sorted(loader.duplicates)])


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) == len(pairs):
        return mapping
    keys = [key for key, _ in pairs]
    repeating = _MappingWithDuplicates(mapping)
    repeating.duplicate_keys = tuple(key for at, key in enumerate(keys) if key in keys[:at])
    return repeating


def _duplicates(value: Any, where: str = "") -> Iterator[str]:  # noqa: ANN401  any JSON
    if isinstance(value, dict):
        for key, part in value.items():
            path = f"{where}.{key}" if where else key
            yield from [path] * (isinstance(value, _MappingWithDuplicates) and key in value.duplicate_keys)
            yield from _duplicates(part, path)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _duplicates(part, f"{where}[{index}]")


async def read(request: web.Request, kind: str) -> Body:
    """Read the body of a create, update or delete.

    Raises:
        Refusal: 400, the body cannot be parsed; 415, its media type is not supported.
    """
    media = request.content_type if "Content-Type" in request.headers else _JSON
    if media not in MEDIA:
        known = ", ".join(MEDIA)
        why = f"the body of the request was in an unknown format - accepted media types include: {known}"
        raise Refusal(415, "UnsupportedMediaType", why)
    if media == _PROTOBUF:
        return Body(protobuf.decode(await request.read()), [])
    text = await request.text()
    unreadable = f"the object provided is unrecognized (must be of type {kind}): "
    try:
        body = parse(text, as_yaml=media == _YAML)
    except ValueError as error:
        why = str(error) if media == _YAML else f"couldn't get version/kind; json parse error: {error}"
        raise bad_request(f"{unreadable}{why} ({text[:_SHOWN] or '<empty>'})") from error
    if not isinstance(body.value, dict):
        raise bad_request(f"{unreadable}couldn't get version/kind; not an object")
    if media == _YAML and body.duplicates:
        body = body._replace(duplicates=["yaml: unmarshal errors:\n  " + "\n  ".join(body.duplicates)])
    return body


def patch_type(request: web.Request) -> str:
    """Return the media type of a patch request.

    Raises:
        Refusal: 415, the type is not supported.
    """
    if request.content_type not in PATCHES:
        raise Refusal(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
    return request.content_type


async def read_patch(request: web.Request, how: str, options: Options) -> Any:  # noqa: ANN401  any JSON
    """Read the body of a patch.

    Raises:
        Refusal: 400, the body cannot be parsed; 400 or 422, it has duplicate keys and validation is strict.
    """
    try:
        text = await request.text()
        # the real server reads all of it as YAML, which has no surrogates; JSON is faster
        body = parse(text, as_yaml=how == APPLY and (not text.startswith("{") or bool(_ESCAPED.search(text))))
        if how == APPLY and body.duplicates:
            body = parse(text, as_yaml=True)
    except ValueError as error:
        raise bad_request(f"error decoding {'YAML' if how == APPLY else 'patch'}: {error}") from error
    if how != JSON and not isinstance(body.value, dict):
        raise bad_request("error decoding patch: not an object")
    json_patch = "json patch " if how == JSON else ""

    def refusal(message: str) -> Refusal:
        if how == APPLY:
            lines = "\n  ".join(body.duplicates)
            return bad_request(
                f"error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {lines}"
            )
        return invalid("", "", "", [bad_value("patch", canonical(text), f"strict decoding error: {message}")])

    options.complain([json_patch + key for key in body.duplicates], refusal)
    return body.value


def shape(request: web.Request) -> str:
    """Return the first supported shape of the Accept header: the object itself (empty), a Table, or metadata alone.

    Raises:
        Refusal: 406, no shape is supported.
    """
    for accepted in (request.headers.get("Accept") or "*/*").split(","):
        media, *parameters = (part.strip() for part in accepted.split(";"))
        wanted = next((part[3:] for part in parameters if part.startswith("as=")), "")
        if media in {_JSON, "application/*", "*/*"} and wanted in _SHAPES:
            return wanted
    known = f"{_JSON}, {_JSON};stream=watch"
    raise Refusal(406, "NotAcceptable", f"406: Not Acceptable\n\nAvailable representations: {known}", {})


_dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def line(item: Object) -> str:
    """Format an object as a line of JSON."""
    return _dump(item) + "\n"


def answer(item: Object, status: int = 200, warnings: list[str] | None = None) -> web.Response:
    """Make a JSON response, with Warning headers."""
    response = web.Response(text=line(item), status=status, content_type=_JSON)
    for warning in warnings or ():
        text = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{text}"')
    return response
