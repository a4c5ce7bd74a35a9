"""Hot compositions as plain functions of tensors, one folder each: reference, fast path, derivation.

Shared by them: `layout` (every token layout as heads x tokens x channels) and `blocks` (rows that stay in cache).
"""
