"""The opener of a cluster: starts its host and watches it."""
