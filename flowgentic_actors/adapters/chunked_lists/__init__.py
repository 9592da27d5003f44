"""Long lists of checkpoints, stored in chunks that their versions share."""
