"""An environment in a cluster: apply objects, record releases, hold the lock, and decide what may be released."""
