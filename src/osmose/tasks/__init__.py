"""Training and evaluation: settings (`config`, `recipes`), the loop, checkpoints, run folders, comparisons.

Importing this package costs nothing: torch is imported by the modules that compute.
"""
