"""What a rollout has come to: progressing, complete or doomed.

`judge` is a pure function of what was observed, of two times, and of what the verdict before handed on. `verdict` has
the words, `judging` the decision, `case` what it is made from, `kinds` and `progress` what workloads say of themselves,
`revisions` which pods are the new ones, `obstacles` what keeps pods from being created, `steadiness` what is up to
stay, `services` whether requests arrive, `company` what the rest of the release excuses, `weighing` how much patience
is left, and `story` the sentence.
"""

from prefect_cd.diagnosis.serving import Knock
from prefect_cd.rollout.company import companies
from prefect_cd.rollout.judging import judge
from prefect_cd.rollout.verdict import ALONE, Company, Log, Memory, Observation, Patience, Phase, Verdict

__all__ = [
    "ALONE",
    "Company",
    "Knock",
    "Log",
    "Memory",
    "Observation",
    "Patience",
    "Phase",
    "Verdict",
    "companies",
    "judge",
]
