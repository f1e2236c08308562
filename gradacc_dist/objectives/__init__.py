"""Heads and losses as (sum, count) terms."""
