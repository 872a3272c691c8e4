"""What every room uses and what knows none of them.

Names, checks of arguments, random numbers, number formats, records.
"""
