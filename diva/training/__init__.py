"""The step, its losses, what surrounds it and what a run leaves behind."""
