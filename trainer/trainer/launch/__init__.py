"""The parent of every training job: starts one worker per device, owns the job's run and closes it with the truth.

It lives on when a worker is killed, so that the truth does not die with a rank. It knows nothing of Lightning.
"""
