"""Observe a rollout until there is a verdict: informers, live checks, crash logs, and the loop around `assess`."""
