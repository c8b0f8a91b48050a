"""SGLang's contract, as far as the engine relies on it, asked of two servers: the embedded one, and SGLang itself.

Both serve the same files. Every case is asked of both; what one does on purpose, and the other does not, is a field of
tests.conformance.differences and nothing else.
"""
