"""Structural guidance: maps that tell the prior where things are; formulas and extractors that make them."""
