"""Frames and typed messages, and the connections that carry them."""
