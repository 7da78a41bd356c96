"""What happens around training: the run folder, checkpoints, interruption, rollouts on file, progress, the report."""
