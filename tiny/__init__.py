"""
The embedded default: a corpus, an encoder, a vocoder and a model that fit into the repository.

    python -m tiny.unpack            the corpus as units folders and words
    python -m tiny.stories           more stories of the same grammar, as text
    python -m tiny.talk              more everyday talk, as text
    python -m tiny.preferences       preference pairs of the stories

May import: speech, files, configurator.
"""
