"""Tools to test the memory, and programs that use it, under faults."""
