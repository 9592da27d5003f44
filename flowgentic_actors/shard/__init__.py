"""The memory actor: engine and journal behind a mailbox."""
