"""The embedded cluster: a Kubernetes API server, its controllers and one node, in one process."""
