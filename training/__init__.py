"""
What train.py and dpo.py stand on: checks of settings, processes, checkpoints, the log, costs; training of a vocoder.

May import: speech, hub, data, model, corpora, tasks and what these may import.
"""
