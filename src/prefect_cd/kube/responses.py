"""What an answer of the API server means: our own errors, and which of them are worth another attempt."""

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
_STARTS_SECONDS = 10.0
# said with status 500, though it is the manifest's fault
_MANIFESTS_FAULT = ("failed to create typed patch object", "failed to convert new object", "error decoding from json")
# said with status 403; the latter by admission until it knows the namespaces (apiserver, `admission/errors.go`)
_STARTING_OR_ENDING = ("is being terminated", "not yet ready to handle request")
_EXPLAIN = "correct the manifest; `kubectl explain` knows the fields"
_log = logging.getLogger(__name__)


class ApiError(Errored):
    """An answer of the API server that the caller has to understand, by `status` and `cause`."""

    code = "cluster-error"

    def __init__(self, reason: str, *, status: int = 0, cause: str = "", where: str = "", hint: str = "") -> None:
        super().__init__(reason, where=where, hint=hint)
        self.status = status
        self.cause = cause


class Retryable:
    """Which errors of one request are worth another try.

    A server that starts refuses what it would allow, until it has read its roles: for a moment that heals, too.
    """

    def __init__(self) -> None:
        self._away = -math.inf

    def __call__(self, error: Exception) -> bool:
        """Whether to try again after `error`; logs it when so."""
        now = time.monotonic()
        if isinstance(error, ClusterUnreachable):
            self._away = now
        elif not (isinstance(error, Forbidden) and now - self._away < _STARTS_SECONDS):
            return False
        _log.warning("%s; trying again", error.reason)
        return True


def error_of(method: str, status: int, answer: bytes, where: str) -> Exception:  # noqa: PLR0911  one line per meaning
    """The error that an answer other than 2xx stands for."""
    try:
        told = json.loads(answer)
    except ValueError:
        told = {}
    told = told if isinstance(told, dict) else {}
    message = str(told.get("message") or answer.decode(errors="replace")[:500] or f"HTTP {status}")
    if where.startswith("secret/"):  # the server quotes a value of the wrong type
        message = re.sub("got &.*", "got another type", message)
    causes = (told.get("details") or {}).get("causes") or []
    if any(words in message for words in _MANIFESTS_FAULT):
        return InvalidManifest(message, where=where, hint=_EXPLAIN)
    if status in _TRANSIENT or any(words in message for words in _STARTING_OR_ENDING):
        return ClusterUnreachable(f"the API server cannot answer now: {message}", where=where)
    if status == UNAUTHORIZED:
        return Forbidden(
            "the API server does not accept our credentials", where=where, hint="renew the kubeconfig's token"
        )
    if status == 403 and (method == "GET" or re.search(r"(User|user) .*cannot ", message)):  # noqa: PLR2004
        return Forbidden(message, where=where, hint="grant this verb on this resource with a Role and a RoleBinding")
    if status == CONFLICT and any(cause.get("reason") == "FieldManagerConflict" for cause in causes):
        return _ownership(causes, where)
    if status in {400, 403, 413, 422}:
        return InvalidManifest(message, where=where, hint=_EXPLAIN)
    return ApiError(message, status=status, cause=str(told.get("reason", "")), where=where)


def _ownership(causes: list[dict[str, str]], where: str) -> OwnershipConflict:
    fields = "\n".join(f"{cause.get('field', '?')}: {cause.get('message', '')}" for cause in causes)
    owners = sorted(
        {name for cause in causes for name in re.findall(r'conflict with "([^"]+)"', cause.get("message", ""))}
    )
    return OwnershipConflict(
        f"{FIELD_MANAGER} would change what {' and '.join(owners) or 'another manager'} owns",
        where=where,
        detail=fields,
        hint="remove these fields from the manifest, or set `take_over: true` for the environment",
    )
