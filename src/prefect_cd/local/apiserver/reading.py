"""From a body to an object of a kind in its place: what it says it is, what its type has room for, where it belongs."""

import base64
from typing import Any

from prefect_cd.local.apiserver import schema, values
from prefect_cd.local.apiserver.errors import bad_request, conflict
from prefect_cd.local.apiserver.kinds import Kind
from prefect_cd.local.apiserver.options import Options
from prefect_cd.local.apiserver.storage import Key

Object = dict[str, Any]
Body = Any


def read(kind: Kind, key: Key, body: Body, options: Options) -> Object:
    """A body as an object of the kind in its place.

    Raises:
        Refusal: 400, it is something else, or says what its type has no room for.
    """
    version, said = body.get("apiVersion") or kind.api_version, body.get("kind") or kind.kind
    unreadable = f'{said} in version "{kind.version}" cannot be handled as a {kind.kind}: '
    if version != kind.api_version:
        expected = f"the expected API version ({kind.api_version})"
        raise bad_request(f"the API version in the data ({version}) does not match {expected}")
    if said != kind.kind:
        ways = f"({kind.version}.{said}) to ({kind.group or 'core'}.{kind.kind})"
        raise bad_request(f"{unreadable}converting {ways}: unknown conversion")
    complaints = list(options.repeated)
    try:
        item: Object = values.read(schema.of(kind), body, complaints)
    except values.WrongType as error:
        raise bad_request(f"{unreadable}{error}") from error
    options.complain(complaints, lambda said: bad_request(f"{unreadable}strict decoding error: {said}"))
    _refuse_other_place(kind, item["metadata"], key)
    place = {"namespace": key[0]} if kind.namespaced else {}
    place |= {"name": key[1]} if key[1] else {}
    if kind.kind == "Secret" and item.get("stringData"):
        texts = {name: base64.b64encode(each.encode()).decode() for name, each in item.pop("stringData").items()}
        item["data"] = {**(item.get("data") or {}), **texts}
    return {**item, "kind": kind.kind, "apiVersion": kind.api_version, "metadata": {**item["metadata"], **place}}


def _refuse_other_place(kind: Kind, metadata: Object, key: Key) -> None:
    namespace, name = key
    if name and metadata.get("name", name) != name:
        raise bad_request(f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})")
    if kind.namespaced and metadata.get("namespace", namespace) != namespace:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")


def refuse_stale(kind: Kind, live: Object, item: Object) -> None:
    """Refuse to write over what is not what the writer has seen.

    Raises:
        Refusal: 409.
    """
    there, asked = live["metadata"], item["metadata"]
    if asked.get("uid", there["uid"]) != there["uid"]:
        why = f"Precondition failed: UID in precondition: {asked['uid']}, UID in object meta: {there['uid']}"
        raise conflict(kind, there["name"], why)
    if asked.get("resourceVersion") not in {None, "", there["resourceVersion"]}:
        raise conflict(kind, there["name"])


def applied(kind: Kind, key: Key, body: Object) -> Object:
    """The configuration of an apply, with the name of its URL.

    Raises:
        Refusal: 400, it is of another object.
    """
    version, said = str(body.get("apiVersion", "")), str(body.get("kind", ""))
    if (version, said) != (kind.api_version, kind.kind):
        where = version if "/" in version else f"/{version}"
        raise bad_request(f"invalid object type: {where}, Kind={said}")
    metadata = body.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    _refuse_other_place(kind, metadata, key)
    if metadata.get("managedFields") is not None:
        raise bad_request("metadata.managedFields must be nil")
    return {**body, "metadata": {**metadata, "name": key[1]}}
