"""Errors as Status objects: reason, details, causes and code, with the messages of the real server.

Source: the API conventions ("Response Status Kind") and answers of a server of 1.36; tests/conformance compares.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from prefect_cd_local.apiserver.kinds import Kind

Json = dict[str, Any]
MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


class Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, code: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details

    def status(self) -> Json:
        """The Status object that is sent."""
        more: Json = {"reason": self.reason} if self.reason else {}
        more |= {"details": self.details} if self.details is not None else {}
        head = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message}
        return {**head, **more, "code": self.code}


class Cause(NamedTuple):
    """One error in one field."""

    reason: str
    message: str
    field: str


def required(field: str, why: str = "") -> Cause:
    """A required field is missing."""
    return Cause("FieldValueRequired", "Required value" + (f": {why}" if why else ""), field)


def bad_value(field: str, value: str, why: str) -> Cause:
    """A field has an invalid value; `value` is as the message prints it."""
    return Cause("FieldValueInvalid", f"Invalid value: {value}: {why}", field)


def unsupported(field: str, value: str, supported: Sequence[str]) -> Cause:
    """A field has a value that is not in its closed list."""
    known = ", ".join(f'"{value}"' for value in supported)
    return Cause("FieldValueNotSupported", f'Unsupported value: "{value}": supported values: {known}', field)


def forbidden_field(field: str, why: str) -> Cause:
    """A field is set that must not be."""
    return Cause("FieldValueForbidden", f"Forbidden: {why}", field)


def about(kind: Kind, name: str, **more: Any) -> Json:  # noqa: ANN401  any JSON
    """Details of a Status: the object that it is about."""
    return {
        **({"name": name} if name else {}),
        **({"group": kind.group} if kind.group else {}),
        "kind": kind.plural,
        **more,
    }


def not_found(kind: Kind, name: str) -> Refusal:
    """404: no such object."""
    return Refusal(404, "NotFound", f'{kind.resource} "{name}" not found', about(kind, name))


def no_such_path() -> Refusal:
    """404: no such resource in a group and version that is served."""
    return Refusal(404, "NotFound", "the server could not find the requested resource", {})


def not_allowed() -> Refusal:
    """405: the path does not support this verb."""
    return Refusal(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def already_exists(kind: Kind, name: str) -> Refusal:
    """409: the name of a new object is in use."""
    return Refusal(409, "AlreadyExists", f'{kind.resource} "{name}" already exists', about(kind, name))


def conflict(kind: Kind, name: str, why: str = MODIFIED) -> Refusal:
    """409: a precondition does not hold."""
    message = f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}'
    return Refusal(409, "Conflict", message, about(kind, name))


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> Refusal:
    """422: an object or options fail validation."""
    once = list(dict.fromkeys(causes))
    messages = [f"{cause.field}: {cause.message}" for cause in once]
    text = messages[0] if len(messages) == 1 else "[" + ", ".join(messages) + "]"
    details: Json = {"name": name} if name else {}
    details |= {"group": group} if group else {}
    details |= {"kind": kind, "causes": [cause._asdict() for cause in once]}
    full = f"{kind}.{group}" if group else kind
    return Refusal(422, "Invalid", f'{full} "{name}" is invalid: {text}', details)


def bad_request(message: str) -> Refusal:
    """400: the request cannot be understood."""
    return Refusal(400, "BadRequest", message)


def forbidden(kind: Kind, name: str, why: str, *causes: Cause) -> Refusal:
    """403: an admission plug-in refuses the request."""
    more = {"causes": [cause._asdict() for cause in causes]} if causes else {}
    return Refusal(403, "Forbidden", f'{kind.resource} "{name}" is forbidden: {why}', about(kind, name, **more))
