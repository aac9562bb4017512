"""Reference numbers: what each recipe gave when it was measured, and a way to measure it again and compare."""
