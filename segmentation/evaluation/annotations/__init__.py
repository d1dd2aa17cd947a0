"""Annotations for other tools: what clusters and labels are turned into."""
