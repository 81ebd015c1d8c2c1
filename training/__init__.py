"""
What train.py and dpo.py stand on: checks of settings, processes and what they tell each other, optimizers,
checkpoints, the log, costs; training of a vocoder; export of models for others, with a card, and as GGUF files.

May import: speech, hub, data, model, corpora, tasks and what these may import; the card also evaluation's tables.
"""
