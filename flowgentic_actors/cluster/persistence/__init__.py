"""Memories and clusters on the disk."""
