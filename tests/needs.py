"""What a test is about may be missing on a system, or be switched off: then the test is left out, and says why."""

from __future__ import annotations

import pytest

from joblib_stateful._process import _system


def needs(*names: str) -> pytest.MarkDecorator:
    """Return the mark of a test that is about some of what the system has, by their names in `_system`."""
    unknown = set(names) - set(_system.NAMES)
    assert not unknown, f"nothing of the system is called {unknown}"
    missing = [name for name in names if name in _system.MISSING]
    return pytest.mark.skipif(
        bool(missing), reason=f"is about what is missing or switched off here: {', '.join(missing)}"
    )
