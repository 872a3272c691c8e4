"""The user's model, made ready: built, named, observed, its layers replaced where an option asks for it."""
