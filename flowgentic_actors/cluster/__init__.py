"""The cluster: its host and actors, how it is opened and reached, where each key lives."""
