"""Why the cluster does not let a workload create its pods, or a Deployment its ReplicaSet.

Decides by the words of the API server's admission: a policy that denies a template will deny it again, a quota may be
raised, and a webhook that does not answer may answer later.
"""

import re
from dataclasses import replace
from datetime import datetime

from prefect_cd.kube.objects import Object, names_in
from prefect_cd.rollout.diagnosis.cause import ADMISSION_DRY_RUN, Category, Cause, Rule, explain, first

_SAME_AGAIN = "correct the pod template; the same template will be refused again"

_RULES = (
    # first the frames in which the API server gives somebody's free words: what a policy says may be anything
    Rule(r"denied (the )?request", Category.ADMISSION, True, "the cluster refuses pods of {object}: {words}",
         _SAME_AGAIN),
    Rule(r"violates PodSecurity", Category.ADMISSION, True, "the cluster refuses pods of {object}: {words}",
         f"set the securityContext that the namespace's level asks for; {_SAME_AGAIN}"),
    Rule(r"exceeded quota:", Category.QUOTA, False, "{object} may not create pods: {words}",
         "raise the quota or ask for less (kubectl -n {namespace} describe resourcequota)"),
    Rule(r"failed quota:", Category.ADMISSION, True, "the cluster refuses pods of {object}: {words}",
         f"set the requests and limits that the quota counts; {_SAME_AGAIN}"),
    Rule(r"failed calling webhook", Category.ADMISSION, False, "{object} cannot create pods: {words}",
         "check the webhook's own pods (kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations)"),
    Rule(r"error looking up service account|serviceaccounts? .*not found", Category.SERVICE_ACCOUNT, False,
         "{object} may not create pods: {words}",
         "add the ServiceAccount to the manifests, or correct serviceAccountName"),
    Rule(r"(maximum|minimum) .* usage per|LimitRange|usage to limit ratio", Category.ADMISSION, True,
         "the cluster refuses pods of {object}: {words}",
         f"keep to the namespace's limits (kubectl -n {{namespace}} describe limitrange); {_SAME_AGAIN}"),
    Rule(r"is invalid|is forbidden: .*securit|being terminated", Category.ADMISSION, True,
         "the cluster refuses pods of {object}: {words}", _SAME_AGAIN),
    Rule(r"", Category.ADMISSION, False, "{object} cannot create pods: {words}",
         "kubectl -n {namespace} describe {object}"),
)  # fmt: skip

_NO_REPLICA_SET = Rule(r"", Category.REPLICA_SET, False, "{object} cannot create its new ReplicaSet: {words}",
                       "kubectl -n {namespace} describe {object}")  # fmt: skip


def refusal(owner: Object, message: str, *, since: datetime | None, seen: datetime | None) -> Cause:
    """Why the cluster does not let `owner` create its pods (a FailedCreate message)."""
    cause = explain(first(_RULES, message, *names_in(owner)), owner, _bare(message), since=since, seen=seen)
    # of this refusal: what was let in after it may be refused again
    return replace(cause, missing=cause.missing or f"{ADMISSION_DRY_RUN}/{seen or ''}")


def unreplicated(owner: Object, message: str, *, since: datetime | None, seen: datetime | None) -> Cause:
    """Why the Deployment `owner` has no ReplicaSet for its template (a ReplicaSetCreateError message)."""
    rule = first(_RULES, message, *names_in(owner))
    named = rule.category in (Category.QUOTA, Category.ADMISSION) and rule.pattern
    chosen = rule._replace(fact=rule.fact.replace("pods", "the ReplicaSet")) if named else _NO_REPLICA_SET
    return explain(chosen, owner, _bare(message), since=since, seen=seen)


def _bare(message: str) -> str:
    """Without what the controllers put in front of the API server's words."""
    said = re.sub(r'^.*?Error creating: |^Failed to create new replica set "[^"]*": ', "", message)
    return re.sub(r'^(pods|replicasets\.apps) "[^"]*" is forbidden: ', "", said)
