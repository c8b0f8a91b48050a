"""Policy servers that we start: the command of the embedded one and of SGLang, and SGLang's own environment."""
