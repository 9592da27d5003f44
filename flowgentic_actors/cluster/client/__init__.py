"""Clients of a memory: remote and inline."""
