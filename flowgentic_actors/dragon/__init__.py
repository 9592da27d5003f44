"""All that speaks to Dragon: its processes, its dictionaries, its fixes."""
