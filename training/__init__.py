"""
What train.py and dpo.py stand on: processes, checkpoints, the log, costs; and the training of a vocoder.

May import: speech, hub, data, model, corpora, tasks and what these may import.
"""
