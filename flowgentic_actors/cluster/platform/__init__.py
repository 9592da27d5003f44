"""The ways in which the processes of a cluster can be started; each is chosen in one place."""
