"""
Measures: likelihoods, scores of items, texts and continuations, eval.json and comparisons of models.

May import: speech, hub, data, model, corpora, tasks and what these may import.
"""
