"""`stateful_map`: its arguments, its plan, and the iterator that it returns.

`_api` and `_plan` go from arguments to what is to be done; `_iterator` is the loop in the consumer's thread, which has `_feeder` pull
the input into `_batches`, sends them by `_generator`, which is joblib's, and takes `_results` in order; `_batching` finds sizes,
`_progress` shows bars. Others import `_api`, `_iterator` (the class that users get) and `_progress`.
"""
