"""Search your own images with a trained model: `python -m tools.search --help`.

The fused similarity of E unit embeddings, the mean of their cosines, is one inner product of their concatenations over
√E: an index holds one vector per image, which any vector engine can search.
"""
