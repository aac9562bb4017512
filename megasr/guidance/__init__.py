"""Structural guidance: maps that tell the prior where things are. One file per extractor, one registry."""
