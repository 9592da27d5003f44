"""LangGraph's own tests, run with our memory in the place of theirs. By hand: see `__main__`."""
