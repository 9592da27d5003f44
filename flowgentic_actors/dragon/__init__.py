"""Everything that uses Dragon: processes, dictionaries, fixes."""
