"""``dadl compare``: does a method help on these data? Ways to train, compared fairly."""
