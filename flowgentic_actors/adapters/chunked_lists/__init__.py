"""Long lists of checkpoints, stored in chunks that they share."""
