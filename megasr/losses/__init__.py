"""Losses on restorations, for training in one step or a few."""
