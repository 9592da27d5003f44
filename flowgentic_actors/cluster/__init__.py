"""The cluster: its host and actors, how it is opened and reached, and where each key is."""
