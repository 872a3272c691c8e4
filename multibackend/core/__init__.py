"""What every room uses and what knows none of them: names, checks of arguments, random numbers, formats, records."""
