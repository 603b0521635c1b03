"""The command: one Typer app that mounts each role's commands lazily."""
