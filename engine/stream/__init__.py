"""The trajectory stream: append-only, compressed, checksummed segments of finished groups.

`writer` is the engine's end, `reader` everyone else's; `segment` is the file format, `frame` the format of one group.
"""
