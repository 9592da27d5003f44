"""LangGraph's interfaces over the memory: saver, store and cache."""
