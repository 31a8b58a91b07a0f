"""Where workers' time went: `_measures` adds up what each message has taken, `_report` says it, `_picture` draws it.

What a map has besides, its input and the loop over its results, is `_map`'s; what either advises is its own.
"""
