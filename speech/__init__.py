"""
All that is about sound: audio files, encoders, units, words and their times, recognizers, vocoders.

May import: configurator, files and vocab. Nothing here knows a language model.
"""
