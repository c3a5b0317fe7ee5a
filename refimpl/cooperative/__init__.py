"""Cooperative learning: networks whose depth is chosen at run time. Start with `schemes`, then `experiment`.

Of the paper (Fang, Bradford & Kim 2023) only the abstract is known; the rest of this room is reconstructed.
"""
