"""One light vision model that learns segmentation, detection and classification one after another."""
