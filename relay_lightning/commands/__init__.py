"""The subcommands beside training: filter, synthesize, export, generate."""
