"""Several nodes: who is there, who holds which copy of which shard, and what a lost node means."""
