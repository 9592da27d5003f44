"""Opens a cluster: starts its host and watches it."""
