"""Listeners that show a run or write it down; each loads what it writes with when it is made."""
