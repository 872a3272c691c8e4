"""Bad input: what a user may get wrong, and what a user is told. `test_bad_input.py` runs the table."""
