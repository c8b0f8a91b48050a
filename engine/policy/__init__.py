"""The policy over SGLang's native HTTP API: chat format and actions, client, servers, adapter versions."""
