"""Distilled Voice Assistants: a frozen text LLM learns to hear."""
