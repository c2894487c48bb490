"""The stages of a release as Prefect tasks: a library to compose flows from.

Each stage takes the results of the stages before it, so the signatures keep the order. `deploy` and `rollback` are
whole: they hold the lock, write the records, and roll back when something fails. The stages that they consist of are
here as well; a flow that composes those itself has to keep the invariants itself.
"""

from prefect_cd.tasks.approval import approve
from prefect_cd.tasks.changes import Plan, plan
from prefect_cd.tasks.check import run_check
from prefect_cd.tasks.deployment import Deployed, deploy, recover, restore_known_good, roll_out, rollback
from prefect_cd.tasks.gate import run_gate
from prefect_cd.tasks.image import build
from prefect_cd.tasks.lock import hold_lock
from prefect_cd.tasks.objects import Applied, apply, prune
from prefect_cd.tasks.preconditions import Preflight, preflight
from prefect_cd.tasks.record import Started, find_record, read_state, record_outcome, record_start
from prefect_cd.tasks.release import render
from prefect_cd.tasks.rollout import watch_rollout, watch_soak
from prefect_cd.tasks.source import compare_pipeline_file, resolve
from prefect_cd.tasks.target import Target, Version
from prefect_cd.tasks.traffic import probe

__all__ = [
    "Applied",
    "Deployed",
    "Plan",
    "Preflight",
    "Started",
    "Target",
    "Version",
    "apply",
    "approve",
    "build",
    "compare_pipeline_file",
    "deploy",
    "find_record",
    "hold_lock",
    "plan",
    "preflight",
    "probe",
    "prune",
    "read_state",
    "record_outcome",
    "record_start",
    "recover",
    "render",
    "resolve",
    "restore_known_good",
    "roll_out",
    "rollback",
    "run_check",
    "run_gate",
    "watch_rollout",
    "watch_soak",
]
