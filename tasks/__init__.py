"""The stages of a release as Prefect tasks: a library to compose flows from.

Each takes the results of the stages before it, so the order is visible in the signatures.
"""

from prefect_cd.tasks.approval import approve
from prefect_cd.tasks.changes import Plan, plan
from prefect_cd.tasks.check import run_check
from prefect_cd.tasks.gate import run_gate
from prefect_cd.tasks.image import build
from prefect_cd.tasks.lock import hold_lock
from prefect_cd.tasks.objects import Applied, apply, prune
from prefect_cd.tasks.preconditions import preflight
from prefect_cd.tasks.record import find_record, read_state, record_outcome, record_start
from prefect_cd.tasks.release import render
from prefect_cd.tasks.rollout import watch_afterwards, watch_rollout
from prefect_cd.tasks.source import compare_pipeline_file, resolve
from prefect_cd.tasks.target import Target, Version
from prefect_cd.tasks.traffic import probe

__all__ = [
    "Applied",
    "Plan",
    "Target",
    "Version",
    "apply",
    "approve",
    "build",
    "compare_pipeline_file",
    "find_record",
    "hold_lock",
    "plan",
    "preflight",
    "probe",
    "prune",
    "read_state",
    "record_outcome",
    "record_start",
    "render",
    "resolve",
    "run_check",
    "run_gate",
    "watch_afterwards",
    "watch_rollout",
]
