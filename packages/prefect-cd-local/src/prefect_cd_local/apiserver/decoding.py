"""Turn a body into an object: check kind, namespace and name against the URL, and the fields against the schema."""

import base64
from typing import Any

from prefect_cd_local.apiserver import schema, values
from prefect_cd_local.apiserver.errors import bad_request, bad_value, conflict, invalid
from prefect_cd_local.apiserver.kinds import Kind
from prefect_cd_local.apiserver.options import Options
from prefect_cd_local.apiserver.storage import Key

Object = dict[str, Any]
Body = Any


def read(kind: Kind, key: Key, body: Body, options: Options) -> Object:
    """Read a body as an object of a kind.

    Raises:
        Refusal: 400, the body is of another kind or object, or has fields that the schema does not have.
    """
    version, sent_kind = body.get("apiVersion") or kind.api_version, body.get("kind") or kind.kind
    unreadable = f'{sent_kind} in version "{kind.version}" cannot be handled as a {kind.kind}: '
    if version != kind.api_version:
        expected = f"the expected API version ({kind.api_version})"
        raise bad_request(f"the API version in the data ({version}) does not match {expected}")
    if sent_kind != kind.kind:
        ways = f"({kind.version}.{sent_kind}) to ({kind.group or 'core'}.{kind.kind})"
        raise bad_request(f"{unreadable}converting {ways}: unknown conversion")
    complaints = list(options.duplicates)
    try:
        item: Object = values.read(schema.of(kind), body, complaints)
    except values.WrongType as error:
        raise bad_request(f"{unreadable}{error}") from error
    options.complain(complaints, lambda message: bad_request(f"{unreadable}strict decoding error: {message}"))
    _refuse_other_place(kind, item["metadata"], key)
    place = {"namespace": key[0]} if kind.namespaced else {}
    place |= {"name": key[1]} if key[1] else {}
    if kind.kind == "Secret" and item.get("stringData"):
        texts = {name: base64.b64encode(text.encode()).decode() for name, text in item.pop("stringData").items()}
        item["data"] = {**(item.get("data") or {}), **texts}
    return {**item, "kind": kind.kind, "apiVersion": kind.api_version, "metadata": {**item["metadata"], **place}}


def _refuse_other_place(kind: Kind, metadata: Object, key: Key) -> None:
    namespace, name = key
    if name and metadata.get("name", name) != name:
        raise bad_request(f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})")
    if kind.namespaced and metadata.get("namespace", namespace) != namespace:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")


def refuse_stale(kind: Kind, live: Object, item: Object) -> None:
    """Refuse to overwrite an object that has changed since the writer read it, or that is another one by now.

    The version is compared first: the real server compares it before it validates the object.

    Raises:
        Refusal: 409, the version is another one; 422, the uid is.
    """
    current, sent = live["metadata"], item["metadata"]
    if sent.get("resourceVersion") not in {None, "", "0", current["resourceVersion"]}:
        raise conflict(kind, current["name"])
    if sent.get("uid") not in {None, "", current["uid"]}:
        wrong = bad_value("metadata.uid", f'"{sent["uid"]}"', "field is immutable")
        raise invalid(kind.kind, kind.group, current["name"], [wrong])


def refuse_other_uid(kind: Kind, key: Key, live: Object | None, item: Object) -> None:
    """Refuse to replace another object than the one whose uid was sent: for a PUT, a precondition.

    Raises:
        Refusal: 409.
    """
    current, sent = live["metadata"]["uid"] if live else "", item["metadata"].get("uid")
    if sent not in {None, "", current}:
        place = "/".join(filter(None, ("/registry", kind.plural, *key)))
        failed = f"Precondition failed: UID in precondition: {sent}, UID in object meta: {current}"
        why = f"StorageError: invalid object, Code: 4, Key: {place}, ResourceVersion: 0, AdditionalErrorMsg: {failed}"
        raise conflict(kind, key[1], why)


def applied(kind: Kind, key: Key, body: Object) -> Object:
    """Read the configuration of an apply, with the name of its URL.

    Raises:
        Refusal: 400, it is of another object.
    """
    version, kind_name = str(body.get("apiVersion", "")), str(body.get("kind", ""))
    if (version, kind_name) != (kind.api_version, kind.kind):
        where = version if "/" in version else f"/{version}"
        raise bad_request(f"invalid object type: {where}, Kind={kind_name}")
    metadata = body.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    _refuse_other_place(kind, metadata, key)
    if metadata.get("managedFields") is not None:
        raise bad_request("metadata.managedFields must be nil")
    return {**body, "metadata": {**metadata, "name": key[1]}}
