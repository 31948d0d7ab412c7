"""The systems that answer."""
