"""Wiring: settings, Celery, addresses, and the programs that run the service."""

import gc

# What starts makes objects that stay: to look through them meanwhile takes a sixth of the start.
gc.set_threshold(50_000)
