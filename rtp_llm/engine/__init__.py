"""The engine floor: time, threads and queues; no HTTP, no torch."""
