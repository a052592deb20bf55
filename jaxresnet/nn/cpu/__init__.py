"""Why the network is fast on CPUs: `conv` is its convolution there, made of matrix products (`products`) over chunks of
the batch that stay in the cache (`chunks`)."""
