"""The event loop that processes run on: uvloop where it is installed, else asyncio's."""

import importlib.util

UVLOOP = importlib.util.find_spec("uvloop") is not None
