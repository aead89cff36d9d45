"""The rows of the applied state: their keys, values and codecs, and how rules read and change them."""
