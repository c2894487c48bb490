"""Manifests: load them from a commit, prepare them for an environment, compare and lint them."""
