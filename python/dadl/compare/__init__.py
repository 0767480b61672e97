"""``dadl compare``: ways to train compared on one's own data, and what chance says about their differences."""
