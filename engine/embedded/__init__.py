"""The embedded CPU policy server: SGLang's native HTTP API over our own decoder, in its own process.

::

    HTTP (event loop)            inbox              model thread                       outbox
    http, control ─▶ Worker.submit ─▶ Scheduler.step: admit → plan → forward → sample ─▶ Ticket.update
                                                │         │                                (one call a step)
                                   PrefixTree ◀─┴─▶ KVPool (size-class slabs)

Every step runs all decoding rows and some prompt tokens in one flat batch, sorted by adapter; a request joins between
two steps. Nothing imports this package; it starts as `python -m engine.embedded`.

Tensor suffixes: `_N` flat token of a step, `_R` row of a slab, `_S` row that draws a token, `_V` vocabulary.
"""
