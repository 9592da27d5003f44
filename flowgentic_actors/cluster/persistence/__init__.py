"""Memories and clusters on the disk: manifest, lock, folders."""
