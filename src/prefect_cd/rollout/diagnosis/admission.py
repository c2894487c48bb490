"""Why the cluster does not let a workload create its pods, or a Deployment its ReplicaSet.

The admission messages of the API server decide: a policy that denies a pod template denies it again, while a quota may
be raised, and a webhook that does not answer may answer later.
"""

import re
from dataclasses import replace
from datetime import datetime

from prefect_cd.kube.objects import Object, names_in
from prefect_cd.rollout.diagnosis.cause import ADMISSION_DRY_RUN, Category, Cause, Rule, explain, matching_rule

_SAME_AGAIN = "correct the pod template; the same template will be refused again"

_OTHER_REFUSAL = Rule(r"", Category.ADMISSION, False, "{object} cannot create {created}: {message}",
                      "kubectl -n {namespace} describe {object}")  # fmt: skip

_RULES = (
    # The API server's own phrases come first: the text of a policy, which follows them, may contain any other pattern.
    Rule(r"denied (the )?request", Category.ADMISSION, True, "the cluster refuses {created} of {object}: {message}",
         _SAME_AGAIN),
    Rule(r"violates PodSecurity", Category.ADMISSION, True, "the cluster refuses {created} of {object}: {message}",
         f"set the securityContext that the namespace's Pod Security level requires; {_SAME_AGAIN}"),
    Rule(r"exceeded quota:", Category.QUOTA, False, "{object} may not create {created}: {message}",
         "raise the quota or request less (kubectl -n {namespace} describe resourcequota)"),
    Rule(r"failed quota:", Category.ADMISSION, True, "the cluster refuses {created} of {object}: {message}",
         f"set the requests and limits that the quota counts; {_SAME_AGAIN}"),
    Rule(r"failed calling webhook", Category.ADMISSION, False, "{object} cannot create {created}: {message}",
         "check the webhook's own pods (kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations)"),
    Rule(r"error looking up service account|serviceaccounts? .*not found", Category.SERVICE_ACCOUNT, False,
         "{object} may not create {created}: {message}",
         "add the ServiceAccount to the manifests, or correct serviceAccountName"),
    Rule(r"(maximum|minimum) .* usage per|LimitRange|usage to limit ratio", Category.ADMISSION, True,
         "the cluster refuses {created} of {object}: {message}",
         f"stay within the namespace's limits (kubectl -n {{namespace}} describe limitrange); {_SAME_AGAIN}"),
    Rule(r"is invalid|is forbidden: .*securit|being terminated", Category.ADMISSION, True,
         "the cluster refuses {created} of {object}: {message}", _SAME_AGAIN),
    _OTHER_REFUSAL,
)  # fmt: skip

_NO_REPLICA_SET = Rule(r"", Category.REPLICA_SET, False, "{object} cannot create its new {created}: {message}",
                       "kubectl -n {namespace} describe {object}")  # fmt: skip


def pod_creation_problem(owner: Object, message: str, *, since: datetime | None, last_seen: datetime | None) -> Cause:
    """Why the cluster does not let `owner` create its pods.

    Args:
        owner: the ReplicaSet, StatefulSet, DaemonSet or Job.
        message: of its FailedCreate condition or event.
        since: when it was first refused.
        last_seen: when it was last refused.
    """
    rule = matching_rule(_RULES, message, *names_in(owner))
    cause = explain(rule, owner, _without_prefix(message), since=since, last_seen=last_seen)
    # The time makes each refusal a check of its own: a dry run that succeeded says nothing about a later refusal.
    return replace(cause, missing=cause.missing or f"{ADMISSION_DRY_RUN}/{last_seen or ''}")


def replica_set_creation_problem(
    owner: Object, message: str, *, since: datetime | None, last_seen: datetime | None
) -> Cause:
    """Why the Deployment `owner` has no ReplicaSet for its template (from a ReplicaSetCreateError message)."""
    rule, created = matching_rule(_RULES, message, *names_in(owner)), "the ReplicaSet"
    if rule is _OTHER_REFUSAL or rule.category is Category.SERVICE_ACCOUNT:
        rule, created = _NO_REPLICA_SET, "ReplicaSet"
    return explain(rule, owner, _without_prefix(message), created=created, since=since, last_seen=last_seen)


def _without_prefix(message: str) -> str:
    """The API server's message, without what the controllers put in front of it."""
    message = re.sub(r'^.*?Error creating: |^Failed to create new replica set "[^"]*": ', "", message)
    return re.sub(r'^(pods|replicasets\.apps) "[^"]*" is forbidden: ', "", message)
