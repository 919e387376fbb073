"""The environment variables that the project reads."""
