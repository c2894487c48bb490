"""What an answer of the API server means: our own errors, and which of them are worth a retry."""

import json
import logging
import math
import re
import time

from prefect_cd.errors import ClusterUnreachable, Errored, Forbidden, InvalidManifest, OwnershipConflict

FIELD_MANAGER = "prefect-cd"
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
UNAUTHORIZED, NOT_FOUND, CONFLICT, GONE = 401, 404, 409, 410
SUCCESS = range(200, 300)
_START_SECONDS = 10.0
"""How long a server that has started may still answer 403, until it has read its roles."""
_MANIFEST_ERRORS = ("failed to create typed patch object", "failed to convert new object", "error decoding from json")
"""Errors of the manifest that are answered with status 500."""
_TEMPORARY_ERRORS = ("is being terminated", "not yet ready to handle request")
"""Temporary errors that are answered with status 403: of a namespace that is being deleted, and of admission until it
has read the namespaces (k8s.io/apiserver, `admission/errors.go`)."""
_EXPLAIN = "correct the manifest; `kubectl explain` shows the fields"
_log = logging.getLogger(__name__)


class ApiError(Errored):
    """An answer of the API server whose meaning depends on the request; see `status` and `cause`."""

    code = "cluster-error"
    remedy = "read the API server's message in the error; start again"

    def __init__(self, reason: str, *, status: int = 0, cause: str = "", where: str = "", hint: str = "") -> None:
        super().__init__(reason, where=where, hint=hint)
        self.status = status
        self.cause = cause


class Conflict(ApiError):
    """The object is not, or no longer, what the request was for: it has another uid or version, is gone, or is there.

    Not for fields of another manager: that is an OwnershipConflict.
    """

    code = "write-conflict"
    remedy = "start again; where it persists, find out who else writes to the object, by its managedFields"


class Retryable:
    """Which errors of one request are worth a retry.

    A server that starts answers 403 until it has read its roles, so a 403 shortly after an outage is retried, too.
    """

    def __init__(self) -> None:
        self._last_outage = -math.inf

    def __call__(self, error: Exception) -> bool:
        """Whether to retry after `error`; logs it if so."""
        now = time.monotonic()
        if isinstance(error, ClusterUnreachable):
            self._last_outage = now
        elif not (isinstance(error, Forbidden) and now - self._last_outage < _START_SECONDS):
            return False
        _log.warning("%s; retrying", error.reason)
        return True


def error_of(method: str, status: int, answer: bytes, where: str) -> Exception:  # noqa: PLR0911  one line per meaning
    """The error that an answer other than 2xx means."""
    try:
        body = json.loads(answer)
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    message = str(body.get("message") or answer.decode(errors="replace")[:500] or f"HTTP {status}")
    if where.startswith("secret/"):  # the server quotes a value of the wrong type, which is secret
        message = re.sub("got &.*", "got another type", message)
    causes = (body.get("details") or {}).get("causes") or []
    if any(text in message for text in _MANIFEST_ERRORS):
        return InvalidManifest(message, where=where, hint=_EXPLAIN)
    if status in _TRANSIENT or any(text in message for text in _TEMPORARY_ERRORS):
        return ClusterUnreachable(f"the API server cannot answer now: {message}", where=where)
    if status == UNAUTHORIZED:
        return Forbidden(
            "the API server does not accept our credentials", where=where, hint="renew the kubeconfig's token"
        )
    # a 403 on a write may also come from admission, whose message does not name a user
    if status == 403 and (method == "GET" or re.search(r"(User|user) .*cannot ", message)):  # noqa: PLR2004
        return Forbidden(message, where=where, hint="grant this verb on this resource with a Role and a RoleBinding")
    if status == CONFLICT and any(cause.get("reason") == "FieldManagerConflict" for cause in causes):
        return _ownership_conflict(causes, where)
    if status == CONFLICT:
        return Conflict(message, status=status, cause=str(body.get("reason", "")), where=where)
    if status in {400, 403, 413, 422}:
        return InvalidManifest(message, where=where, hint=_EXPLAIN)
    return ApiError(message, status=status, cause=str(body.get("reason", "")), where=where)


def _ownership_conflict(causes: list[dict[str, str]], where: str) -> OwnershipConflict:
    fields = "\n".join(f"{cause.get('field', '?')}: {cause.get('message', '')}" for cause in causes)
    owners = sorted(
        {name for cause in causes for name in re.findall(r'conflict with "([^"]+)"', cause.get("message", ""))}
    )
    return OwnershipConflict(
        f"{FIELD_MANAGER} would change fields of {' and '.join(owners) or 'another manager'}",
        where=where,
        detail=fields,
        hint="remove these fields from the manifest, or set `take_over: true` for the environment",
    )
