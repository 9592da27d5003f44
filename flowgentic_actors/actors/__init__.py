"""The actor kernel: actors, mailboxes, references, supervision. It knows nothing of memory."""
