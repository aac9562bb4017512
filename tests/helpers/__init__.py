"""Small things that several tests need."""
