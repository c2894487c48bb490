"""Continuous deployment to Kubernetes as Prefect flows."""
