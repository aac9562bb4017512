"""Executors: run the trainings of a study in processes of this machine, or as SLURM jobs."""
