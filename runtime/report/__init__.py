"""What is left of a finished run: its page, and its derivatives in the form of BIDS."""
