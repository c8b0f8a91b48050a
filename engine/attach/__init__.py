"""The window for viewers: answers to questions about a running engine (answers), served on engine.sock (server)."""
