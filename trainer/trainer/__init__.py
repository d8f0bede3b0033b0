"""Lightning DDP training jobs, each of them exactly one true MLflow run.

The rooms and what each may know: launch starts one worker per device and owns the run; the worker turns autologging
on and runs the app (a LightningCLI) or a user's own script; every_trainer is what the Trainers of both get through
Lightning's entry points; tracking alone talks to MLflow; provenance records what a run was made from; vision is the
reference workload.
"""
