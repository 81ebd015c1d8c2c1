"""
What a model says, made audible and visible: prompts are read, continuations generated, spoken, transcribed and shown.

May import: model, hub, speech, vocab and the files below them. Used by sample.py.
"""
