"""Processes, parallelism, optimiser, training state, run folder, recorder."""
