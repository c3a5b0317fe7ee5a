"""Checks of another implementation against this one: golden files, suspects, reports, bridges."""
