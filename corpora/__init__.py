"""
Training corpora, one a file: a function utterances(root) for each. tree.py and download.py help
them, read.py finds them by name, table.py prints what token shards and units folders hold.

May import: speech, files and configurator; table.py also data.py.
"""
