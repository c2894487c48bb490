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
from prefect_cd.tasks.prerequisites import preflight
from prefect_cd.tasks.probe import probe
from prefect_cd.tasks.record import begin, find, look, settle
from prefect_cd.tasks.release import render
from prefect_cd.tasks.rollout import watch_afterwards, watch_rollout
from prefect_cd.tasks.source import compare_pipeline_file, resolve
from prefect_cd.tasks.target import Target, Version

__all__ = [
    "Applied",
    "Plan",
    "Target",
    "Version",
    "apply",
    "approve",
    "begin",
    "build",
    "compare_pipeline_file",
    "find",
    "hold_lock",
    "look",
    "plan",
    "preflight",
    "probe",
    "prune",
    "render",
    "resolve",
    "run_check",
    "run_gate",
    "settle",
    "watch_afterwards",
    "watch_rollout",
]
