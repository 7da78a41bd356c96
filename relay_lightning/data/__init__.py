"""What goes into training: problems, prompts, batches, and the Lightning data modules that hand them out."""
