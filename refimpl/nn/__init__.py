"""Networks as compositions of frozen layer specs with hand-written forward and backward passes."""
