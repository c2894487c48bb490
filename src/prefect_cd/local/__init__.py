"""The embedded development cluster: a Kubernetes API, its controllers and one node, in one process."""
