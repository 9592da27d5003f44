"""Flowgentic's memory managers and execution, under its module names."""
