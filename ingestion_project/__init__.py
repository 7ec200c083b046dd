"""Wiring: settings, Celery, addresses, and the programs that run the service."""

from ingestion_project.celery import app as celery_app

__all__ = ["celery_app"]
