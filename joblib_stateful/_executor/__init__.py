"""Executors: `_executor` is the public one; it asks a worker pool, `_pool`, whose `_driver` puts the scheduler's decisions to work.

`_making` makes a pool; `_reuse` and `_turns` share pools between maps and calls, `_room` has idle ones make way on a cluster;
`_replies` and `_futures` go from answers to what callers get, `_timeouts` and `_exit` end what takes too long or must not outlive the
program. `_arguments`, `_nesting` and `_spec` check and pack what users pass. Others import `_executor`, `_pool`, `_reuse`, `_spec`,
`_arguments` and `_nesting`.
"""
