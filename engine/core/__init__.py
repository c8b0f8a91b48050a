"""The loop: one episode (episode), how much is in flight (scheduler), which adapter serves it (versions).

::

    sampler -> admission (group budget) -> live slots -> episode -> group -> stream
                    ^                          ^            |
                    |                          |            lease of one adapter version, start to end
          trained and served, or dropped    episode ended

==========================  =================================================  =====================================
stage                       waits for                                          unblocked by
==========================  =================================================  =====================================
admission of a group        (max_staleness + 1) x groups_per_step              the group was dropped, or trained and
                                                                               its adapter is current everywhere
start of an episode         a live slot                                        an episode ended
a turn                      completion, tool or reply, each under a deadline   the seam
a finished group            the bounded stream                                 disk
a new adapter version       a free slot on the servers                         the last lease of an old one ended
==========================  =================================================  =====================================

What decides is a synchronous transition; the I/O it asks for happens outside.
"""
