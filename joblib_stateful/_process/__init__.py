"""What this process and its system can do, and how to live with it.

`_system` asks what there is, `_locks` and `_interrupts` are for code that Ctrl-C, finalisers and forks may strike, `_timers` calls
later, `_safely` looks at users' exceptions. Everybody may import these.
"""
