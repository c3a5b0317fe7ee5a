"""Comparison of another implementation with this one: golden files, suspected mistakes, reports, bridges."""
