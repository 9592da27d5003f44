"""Tools to test what is built on the memory, and the memory itself, under faults."""
