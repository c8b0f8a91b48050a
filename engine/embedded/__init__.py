"""The embedded CPU policy server: SGLang's native HTTP API over our own decoder, in its own process.

::

    HTTP (event loop)            inbox              model thread                       outbox
    http, control ─▶ Worker.submit ─▶ Scheduler.step: admit → plan → forward → sample ─▶ Sequence.changed
                                                │                                          (one call a step)
                                                └─▶ KVPool (size-class slabs, prefix tree)

Every step runs all decoding rows and some prompt tokens in one flat batch, sorted by adapter; a request joins between
two steps. Nothing imports this package; it starts as `python -m engine.embedded`.

Deliberately not as in SGLang (tests/conformance asks both servers for everything else):

- **full slots refuse**: one adapter more than --max-loras is a 400; SGLang evicts the least recently used one.
- **unloaded is gone**: a request for an unloaded name is a 400; SGLang loads it again from its path.
- **adapter files are checked**: what SGLang ignores (`use_rslora`, rank patterns, trained biases) is a 400.
- **abort is exact**: the rid as it is; SGLang's ends every request whose rid begins with it.
- **the context is all there**: SGLang refuses a prompt that leaves less than seven tokens of it, and ends a completion
  two tokens short of it.
- **top_k = 1 keeps the temperature**: log-probabilities are those at the request's temperature; in an all-greedy batch
  SGLang's are those at 1. At temperature 0 both are.
- **a stream is one prompt**: a batch with `stream` is a 400.
- **refused, not ignored**: fields that would change the result and are not built (penalties, n > 1, grammars, top
  log-probabilities) are a 400; unknown ones too.

Tensor suffixes: `_N` flat token of a step, `_R` row of a slab, `_S` row that draws a token, `_V` vocabulary.
"""
