"""What a job keeps of its training on disk, and how it goes on from there.

files.py            which file is the newest whole one (imports no Lightning)
callbacks.py        best.ckpt and last.ckpt
whole_io.py         how they are written: whole or not at all
resume.py           where a job that was cut off goes on
exact_resume.py     what Lightning's checkpoints leave out
changed_settings.py what the command says now, against what the checkpoint brings back
ckpt_path.py        a start at a checkpoint of another job
"""
