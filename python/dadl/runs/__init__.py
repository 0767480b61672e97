"""``dadl train``, ``dadl evaluate`` and ``dadl predict``, for every method."""
