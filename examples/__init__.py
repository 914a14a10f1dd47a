"""Networks built with nrt.Network, trained ones, and extensions of nrt; each runs as a script."""
