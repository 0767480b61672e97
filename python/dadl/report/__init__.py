"""``dadl report``: runs compared on one HTML page."""
