"""Discovery: versions, groups, resources, and OpenAPI as far as kubectl reads it.

Sources: the API concepts page ("API discovery"; the unaggregated form, which every client supports), and OpenAPI v3
documents of a server of 1.36. The schemas are served as they are in schemas.json.
"""

from functools import cache
from hashlib import sha256
from typing import Any

from prefect_cd_local.apiserver import schema
from prefect_cd_local.apiserver.kinds import GROUP_VERSIONS, SERVED, Kind
from prefect_cd_local.apiserver.options import PATCHES

Json = dict[str, Any]
VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.3+embedded",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "cpython",
    "platform": "linux/amd64",
}
_METHODS = {"get": "get", "update": "put", "create": "post", "patch": "patch", "delete": "delete"}
_QUERY = ("dryRun", "fieldManager", "fieldValidation")
_PATCH = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"


def document(parts: list[str], host: str) -> Json | None:  # noqa: PLR0911  one line per path
    """Return the discovery document at a path, or None."""
    match parts:
        case ["version"]:
            return dict(VERSION)
        case ["api"]:
            return _core_versions(host)
        case ["apis"]:
            return _groups()
        case ["api", "v1"]:
            return _resources("v1")
        case ["apis", group]:
            return _group(group)
        case ["apis", *names] if "/".join(names) in GROUP_VERSIONS:
            return _resources("/".join(names))
        case ["openapi", "v3"]:
            return _openapi_index()
        case ["openapi", "v3", _, *names] if "/".join(names) in GROUP_VERSIONS:
            return _openapi("/".join(names))
    return None


def _core_versions(host: str) -> Json:
    """The answer at /api."""
    served = {"clientCIDR": "0.0.0.0/0", "serverAddress": host}
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [served]}


def _groups() -> Json:
    """The answer at /apis."""
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_described(api_version) for api_version in GROUP_VERSIONS if "/" in api_version],
    }


def _group(name: str) -> Json | None:
    """The answer at /apis/GROUP."""
    group = next((candidate for candidate in _groups()["groups"] if candidate["name"] == name), None)
    return group and {"kind": "APIGroup", "apiVersion": "v1", **group}


def _described(api_version: str) -> Json:
    name, _, version = api_version.partition("/")
    version_entry = {"groupVersion": api_version, "version": version}
    return {"name": name, "versions": [version_entry], "preferredVersion": version_entry}


def _resources(api_version: str) -> Json:
    """The answer at /api/v1 and at /apis/GROUP/VERSION."""
    resources: list[Json] = []
    for kind in _of(api_version):
        more = {"shortNames": kind.short, "categories": kind.categories}
        entry = {"name": kind.plural, "singularName": kind.kind.lower(), "namespaced": kind.namespaced}
        named = {key: value for key, value in more.items() if value}
        resources.append({**entry, "kind": kind.kind, "verbs": kind.verbs, **named})
        for below in kind.subresources:
            group, _, version = below.api_version.rpartition("/")
            served_kind = {"group": group, "version": version} if group else {}
            entry = {"name": f"{kind.plural}/{below.name}", "singularName": "", "namespaced": kind.namespaced}
            resources.append({**entry, **served_kind, "kind": below.kind or kind.kind, "verbs": below.verbs})
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": resources}


def _of(api_version: str) -> list[Kind]:
    return [kind for kind in SERVED if kind.api_version == api_version]


def _openapi_index() -> Json:
    """The answer at /openapi/v3."""
    paths = {}
    for api_version in GROUP_VERSIONS:
        root = _of(api_version)[0].root
        digest = sha256(schema.canonical(_openapi(api_version)).encode()).hexdigest().upper()
        paths[root.lstrip("/")] = {"serverRelativeURL": f"/openapi/v3{root}?hash={digest}"}
    return {"paths": paths}


@cache
def _openapi(api_version: str) -> Json:
    """The answer at /openapi/v3/…: the schemas, and the operations on the kinds of a group and version."""
    paths: Json = {}
    for kind in _of(api_version):
        collection = kind.root + ("/namespaces/{namespace}" if kind.namespaced else "") + f"/{kind.plural}"
        for verb in kind.verbs:
            if verb in _METHODS:
                path = collection if verb == "create" else collection + "/{name}"
                paths.setdefault(path, {})[_METHODS[verb]] = _operation(kind, verb)
    head = {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]}}
    return {**head, "paths": paths, "components": {"schemas": schema.documents()}}


def _operation(kind: Kind, verb: str) -> Json:
    body = {"schema": {"$ref": schema.REF + kind.schema}}
    patches = {media: {"schema": {"$ref": schema.REF + _PATCH}} for media in PATCHES}
    sent = {"requestBody": {"content": patches if verb == "patch" else {"*/*": body}, "required": True}}
    return {
        "parameters": [{"name": name, "in": "query", "schema": {"type": "string"}} for name in _QUERY],
        **({} if verb in {"get", "delete"} else sent),
        "responses": {"200": {"description": "OK", "content": {"application/json": body}}},
        "x-kubernetes-action": _METHODS[verb],
        "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
    }
