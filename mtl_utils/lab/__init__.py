"""The lab in which a student writes the remedy: checks, grading, and the notebooks from one source."""
