"""
Speed beside other implementations, the spread of short runs over seeds, and the recorded results; each script is run as
python bench/NAME.py.

May import: any room.
"""
