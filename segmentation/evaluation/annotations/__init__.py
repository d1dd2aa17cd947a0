"""Annotations for other tools, made from clusters and labels."""
