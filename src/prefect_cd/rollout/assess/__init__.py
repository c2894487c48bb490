"""Decides the state of a rollout: progressing, complete or failed.

`assess` is a pure function of what was observed, of two times, and of the memory that the previous verdict returned:

- `decision` makes the verdict, from the `context` that it builds of one observation.
- `model` defines the data: observation, patience, memory, verdict.
- `kinds` and `progress` read the status of each kind of workload; `revisions` finds the new pods.
- `creation` finds what keeps pods from being created, `reachability` whether requests reach them.
- `stability` decides whether a pod stays up, and what must be remembered of it.
- `patience` decides when a problem fails the rollout; `peers` defers that while other workloads start.
- `removed` decides about Jobs that the cluster has removed.
- `message` writes the sentence for the user.
"""

from prefect_cd.rollout.assess.decision import assess
from prefect_cd.rollout.assess.model import NO_PEERS, Log, Memory, Observation, Patience, Peers, Phase, Verdict
from prefect_cd.rollout.assess.peers import find_peers
from prefect_cd.rollout.assess.removed import assess_removed
from prefect_cd.rollout.diagnosis.port_result import PortResult

__all__ = [
    "NO_PEERS",
    "Log",
    "Memory",
    "Observation",
    "Patience",
    "Peers",
    "Phase",
    "PortResult",
    "Verdict",
    "assess",
    "assess_removed",
    "find_peers",
]
