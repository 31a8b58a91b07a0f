"""The engine ``"loky"``: one process per slot.

`_engine` is what users name, `_runtime` opens workers, `_worker` is one of them on the parent's side, `_child` what runs in its process. `_process`, `_popen`, `_startup`,
`_starting`, `_inheritance`, `_signal_masks` and `_capacity` are about its start, `_ending` and `_process_tree` about its end. Messages go
by `_line`; `_reader` and `_receiving` hear all of them; `_shared_numbers` is the page that shows what each is at; `_log_channel` and
`_log_reader` bring log records.
"""
