"""Dynamics: tokens as interacting particles, depth as time.

Here: ``theory``, every closed form with its source; ``observables``, streamed functions of a state.
"""
