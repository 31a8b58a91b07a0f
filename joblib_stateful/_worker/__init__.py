"""What runs in a worker, which imports almost nothing.

`_worker` builds the object and calls it, `_messages` is what it is told and answers, `_progress_page` what it is seen to do;
`_lazy`, `_shortage`, `_signals`, `_debugging`, `_tracebacks` and `_log_levels` are parts of that. `_surroundings` is what it takes
over from the program.
"""
