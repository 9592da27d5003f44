"""LangGraph's interfaces over the memory."""
