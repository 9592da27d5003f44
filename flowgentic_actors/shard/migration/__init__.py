"""Slot migration: source, target and ownership of slots."""
