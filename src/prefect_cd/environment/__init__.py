"""An environment in a cluster: what we apply there, what we record, who may write, and what may come next."""
