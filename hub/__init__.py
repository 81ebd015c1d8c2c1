"""
Model folders in Hugging Face's layout: families of models and published shapes, safetensors, text
tokenizers.

May import: configurator, files and vocab. Nothing here knows sound.
"""
