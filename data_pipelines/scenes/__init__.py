"""Procedural scenes: rendered images with exact maps and tags."""
