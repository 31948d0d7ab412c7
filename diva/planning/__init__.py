"""What a run needs and costs, counted before anything of it exists."""
