"""The engine ``"dask"``: `_engine` has what users name and what opens workers on a cluster, `_actor` holds one there."""
