"""The joblib backend ``"stateful"``: `_backend` is joblib's contract, `_registration` tells joblib of it.

Nothing else imports from here but the package's own face.
"""
