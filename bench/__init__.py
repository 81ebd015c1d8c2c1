"""
Speed beside other implementations, and the recorded results; each script is run as python bench/NAME.py.

May import: any room.
"""
