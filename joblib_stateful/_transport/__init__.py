"""Values to bytes and buffers, and back.

`_transport` is what runtimes choose from, `_frames` one value's pickle; `_code_pickler`, `_defining`, `_definitions`, `_noticing` and
`_code` send what can't be imported once and notice when it has changed; `_shared_memory`, `_setting_aside`, `_stores`, `_segments`,
`_arrivals` and `_memmaps` are for large buffers. It knows nothing of workers or messages.
"""
