"""The only part that talks to MLflow.

A job writes to its own tracking store, registered through MLflow's plugin entry points (pyproject.toml). What a worker
logs on global rank 0 is appended to the job's spool on disk (store.py, spool.py); launch delivers the spool to the
server (delivery.py) and alone sets the run's status. On every other rank the store is null.
"""
