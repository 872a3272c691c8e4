"""Listeners that show a run or write it down."""
