"""The engine ``"dask"``: `_engine` opens workers on a cluster, `_actor` holds one there."""
