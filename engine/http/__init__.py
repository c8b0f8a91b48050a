"""What the HTTP clients of policy servers and of language models share."""
