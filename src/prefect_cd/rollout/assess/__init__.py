"""What a rollout has come to: progressing, complete or doomed.

`judge` is a pure function of what was observed, of two times, and of what the verdict before handed on. `verdict` has
the words, `judging` the decision, `case` what it is made from, `kinds` and `progress` what workloads say of themselves,
`revisions` which pods are the new ones, `obstacles` what keeps pods from being created, `steadiness` what is up to
stay, `services` whether requests arrive, `company` what the rest of the release excuses, `weighing` how much patience
is left, and `story` the sentence.
"""

from prefect_cd.rollout.assess.decision import assess
from prefect_cd.rollout.assess.model import NO_PEERS, Log, Memory, Observation, Patience, Peers, Phase, Verdict
from prefect_cd.rollout.assess.peers import find_peers
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
    "find_peers",
]
