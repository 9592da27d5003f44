"""A DDict on this node as a memory tier."""
