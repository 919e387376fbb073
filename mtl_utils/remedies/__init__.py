"""Remedies against forgetting, beside replay."""
