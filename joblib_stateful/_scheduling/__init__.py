"""Which slot runs what: pure, no I/O, no threads, no clock.

`_scheduler` takes events and returns `_decisions`; `_slots` is the table of slots and their states, `_assignment` what waits and where
it goes, `_jobs` what is known of a request. `_requests` has the records by which others speak with it.
"""
