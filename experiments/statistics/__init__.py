"""Do the statistics of studies keep their promises? Measured on simulated data whose truth is known."""
