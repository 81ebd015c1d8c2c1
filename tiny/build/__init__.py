"""
The scripts that made what tiny/ ships (tiny/build/build.sh runs them); nobody else needs them.

May import: any room.
"""
