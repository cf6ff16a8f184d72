"""Front-end processes: they speak with clients and read small requests, and one process computes for all of them."""
