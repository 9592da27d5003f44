"""Messages between hosts, nodes and clients, and their types."""
