"""
Benchmarks, one a file: functions that yield items, each a right and a wrong candidate.

May import: speech, files and configurator.
"""
