"""Tables, pictures and pages of an evaluation."""
