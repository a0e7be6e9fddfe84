"""Cases to learn from: where they come from, how they are split, sampled and augmented.

A *case source* yields :class:`medseg.scan.Case` objects and says their licence and citation. To
add one, write a class in ``medseg/data/sources/``, name it in the catalogue of ``medseg/config``
and add a configuration file; the contract test of case sources then runs over it.
"""
