"""Search one's own pictures with a trained model: `python -m tools.search --help`.

The fused similarity (S_bge + S_tse)/2 of unit vectors is one inner product of [bge, tse]/√2, so an index holds one
vector an image, which any vector engine can search.
"""
