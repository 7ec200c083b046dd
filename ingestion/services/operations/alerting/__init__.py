"""Alerting: finding what is wrong (`watch`), rules of who is told (`rules`), telling (`sending`).

Alerts themselves, which every room may open, are `services.alerts`.
"""
