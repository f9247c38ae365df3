"""Where in the brain a concept is: words to vectors, vectors to heat maps, heat maps to files."""
