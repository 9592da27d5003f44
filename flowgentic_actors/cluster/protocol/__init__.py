"""What hosts, nodes and clients say to each other, and its types."""
