"""What the repository shows: READMEs, notebooks, the committed run."""
