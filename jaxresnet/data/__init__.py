"""Data sets as NumPy arrays, and what is done to a batch before the network sees it.

`dataset`: what a data set is, and which images a run takes. `cifar10`: finds, checks and caches CIFAR-10, which
`readers` and `tfds` read. `synthetic`: drawn images, without a download. `augment`: crop, flip and Cutout.
"""
